"""`hybrid simulate` as a user types it: tables that say what they are, JSON, and clear words."""

import json

import pytest

SHAPE = ("simulate", "--shape", "opt-6.7b", "--format", "q4_0", "--context", 256)


def test_a_directory_on_two_machines_with_baselines(hybrid, demo):
    code, out, _ = hybrid(
        *("simulate", demo, "--hardware", "cpu-stand-in", "--hardware", "rtx4060-laptop", "--vram", "12MiB"),
        *("--baselines", "--batch", 1, "--batch", 4),
    )
    assert code == 0
    assert out.splitlines()[0].endswith("mode predicted: predicted, not measured")
    assert "predicted for cpu-stand-in (its figures were not measured): 12.0 MiB of GPU memory, RAM not limited" in out
    assert "predicted for rtx4060-laptop" in out
    assert out.count("| planned ") == 4
    assert out.count("| reloaded ") == 4 and out.count("| does not fit |") == 2  # the stand-in has no drive
    assert "reloaded: no time can be predicted for rows on flash" in out


def test_json_holds_every_prediction_with_its_parts(hybrid):
    code, out, _ = hybrid(*SHAPE, "--hardware", "powerinfer-pc-low", "--json")
    body = json.loads(out)
    assert (code, body["kind"], body["model"]) == (0, "predicted, not measured", "opt-6.7b")
    (machine,) = body["machines"]
    (found,) = machine["predictions"]
    assert machine["name"] == "powerinfer-pc-low" and not machine["measured"]
    assert found["tokens_per_second"] == pytest.approx(1 / found["expected"]["token_seconds"])
    parts = ("attention_seconds", "ffn_seconds", "head_seconds", "transfer_seconds")
    assert found["expected"]["token_seconds"] == pytest.approx(sum(found["expected"][part] for part in parts))


def test_a_prompt_has_its_columns(hybrid):
    code, out, _ = hybrid(*SHAPE, "--hardware", "powerinfer-pc-low", "--baselines", "--prompt", 600)
    header, _, planned = [line for line in out.splitlines() if line.startswith("|")][:3]
    assert code == 0
    assert header.rstrip("| ").endswith("layers streamed") and "prompt, s" in header
    assert planned.count("|") == header.count("|")
    (one,) = json.loads(hybrid(*SHAPE, "--hardware", "powerinfer-pc-low", "--prompt", 600, "--json")[1])["machines"]
    assert one["predictions"][0]["prompt_seconds"] > 0


def test_shapes_are_listed(hybrid):
    code, out, _ = hybrid("simulate", "--list")
    assert code == 0 and "| falcon-40b " in out and "41.3 G" in out
    shapes = json.loads(hybrid("simulate", "--list", "--json")[1])["shapes"]
    assert [one["name"] for one in shapes][:2] == ["opt-6.7b", "opt-13b"]


def test_budgets_of_a_machine_say_where_they_are_from(hybrid):
    code, out, _ = hybrid(*SHAPE, "--hardware", "rtx4060-laptop")
    assert code == 0
    assert "note: GPU memory: 8.0 GiB, less a margin of" in out and "note: RAM:" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of both"),
        (("demo", "--shape", "opt-30b"), "one of both"),
        (("--shape", "opt-3b", "--hardware", "rtx4060-laptop"), "known are opt-6.7b"),
        (("--shape", "opt-30b", "--hardware", "rtx9090"), "no hardware is named"),
        (("--shape", "opt-30b", "--hardware", "m1-max"), "--vram SIZE"),
        (("--shape", "opt-30b", "--vram", "much"), "not a size"),
    ],
)
def test_mistakes_are_one_clear_line(hybrid, arguments, said):
    code, out, err = hybrid("simulate", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("hybrid: ") and said in err and "Traceback" not in err
