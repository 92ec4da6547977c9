"""Which test runs a documented command; of those that none runs as they stand, the reason. All of them are parsed."""

from __future__ import annotations

from documents.reading import Documented

# Documents whose blocks are run one after another, and compared with what they show but for figures.
REPLAYED = ("README.md", "tutorial.md", "first-ten-minutes.md")
# Commands that print the same wherever they run: what a benchmark wrote, or predictions for machines of known figures.
EXACT = (
    "hybrid simulate --shape",
    "python scripts/show_",
    "python scripts/bench_growth.py --redraw",
    "python scripts/bench_prefetch.py --show",
    "python scripts/bench_predictors.py demo --show",
    "python scripts/bench_budgets.py --show",
    "python scripts/bench_placement.py --show",
    "python scripts/bench_placement.py --subsets",
    "python scripts/bench_plans.py --redraw",
    "python scripts/reproduce_paper.py",
    "python scripts/picture_of_trace.py --redraw",
)
QUICK = (
    "hybrid simulate --shape",
    "python scripts/show_peers.py",
    "python scripts/show_gpu.py",
)  # within a second or two

MINUTES = "it takes minutes; scripts/update_documents.py runs it, and tests the same command on less"
LARGE = "it needs a model of gigabytes; tests run the same command on tiny ones"
MEASURES = "it measures for minutes, on a model that is made first; tests/scripts runs the script on a tiny one"
INSTALLS = "it changes what is installed; .ci/run and tests of the installation do it where they may"
TESTS = "it runs the tests"
SERVES = "it goes on until it is stopped; tests/hybrid/serving and the tutorial start servers"
HUB = "it downloads 13 GB; tests download from a hub of their own on loopback"

UNRUN = {
    ("README.md", "make demo"): INSTALLS,
    ("README.md", "hybrid compare demo"): MINUTES,
    ("README.md", "hybrid eval demo"): MINUTES,
    ("README.md", "source .venv/bin/activate"): INSTALLS,
    ("README.md", "hybrid doctor"): "what it prints is the machine's; tests of hybrid doctor run it",
    ("README.md", "hybrid prepare SparseLLM/ReluLLaMA-7B"): HUB,
    ("README.md", "hybrid run relu7b"): LARGE,
    ("README.md", "hybrid chat relu7b"): LARGE,
    ("README.md", "hybrid serve relu7b"): LARGE,
    ("README.md", "hybrid compare relu7b"): LARGE,
    ("adding-a-family.md", "python -m pytest"): TESTS,
    ("measuring.md", "python scripts/make_synthetic.py"): MEASURES,
    ("measuring.md", "hybrid run build/llama-1b"): MEASURES,
    (
        "measuring.md",
        "python scripts/picture_of_trace.py build/trace.json",
    ): "it draws what the command before it wrote",
    ("BENCHMARKS.md", "python scripts/bench_prompts.py"): MEASURES,
    ("BENCHMARKS.md", "python scripts/bench_operators.py"): MEASURES,
    ("BENCHMARKS.md", "python scripts/bench_start.py"): MEASURES,
    ("BENCHMARKS.md", "python scripts/measure_sharing.py"): LARGE,
    ("BENCHMARKS.md", "python scripts/make_synthetic.py"): MEASURES,
    ("BENCHMARKS.md", "hybrid pack SOURCE"): MEASURES,
    ("BENCHMARKS.md", "hybrid compare ~/.cache/hybrid/synthetic-270m"): MEASURES,
    ("BENCHMARKS.md", "sudo python scripts/bench_prefetch.py"): "it sets a limit of memory on a control group, as root",
    ("CONTRIBUTING.md", "make install"): INSTALLS,
    ("CONTRIBUTING.md", "make check"): TESTS,
    ("CONTRIBUTING.md", "make test"): TESTS,
    ("CONTRIBUTING.md", "make bench"): MEASURES,
    ("server.md", "pip install"): INSTALLS,
    ("server.md", "hybrid serve demo"): SERVES,
    ("server.md", "curl -s http://127.0.0.1:8000/v1/completions"): SERVES,
    ("server.md", "python scripts/load_server.py"): SERVES,
}


def is_exact(command: str) -> bool:
    """Whether a command prints the same in every run, on every machine."""
    return command.startswith(EXACT)


def reason_of(documented: Documented) -> str | None:
    """Why no test runs a command as it stands, or None."""
    for (document, beginning), reason in UNRUN.items():
        if documented.document.name == document and documented.command.startswith(beginning):
            return reason
    return None
