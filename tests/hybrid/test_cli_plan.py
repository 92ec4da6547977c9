"""`hybrid plan` as a user types it; what it decides is tested in placement, what it reads in its stage."""

import json


def test_a_plan_is_explained(hybrid, demo_copy):
    code, out, _ = hybrid("plan", demo_copy, "--vram", "3MiB", "--context", 256, "--batch", 2, "--explain")
    assert code == 0
    for said in ("what binds", "more --vram", "first-", "everything-on-cpu", "not measured", "batches of 2", "budget"):
        assert said in out
    code, out, _ = hybrid("plan", demo_copy, "--vram", "3MiB", "--objective", "impact", "--explain", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["plan"]["solver"]["objective"] == "impact"
    assert {one["memory"] for one in report["explanation"]["more"]} == {"vram"}


def test_a_machine_that_is_not_here_gets_a_plan_that_says_so(hybrid, demo_copy):
    code, out, _ = hybrid("plan", demo_copy, "--hardware", "rtx4060-laptop", "--context", 256)
    assert code == 0
    assert "margin of 512.0 MiB" in out
    assert "nominal or from data sheets, not measured" in out


def test_what_makes_no_plan_is_refused(refused, demo_copy, tmp_path):
    assert "not a size" in refused("plan", demo_copy, "--vram", "-1GiB")
    assert "rtx4060-laptop" in refused("plan", demo_copy, "--vram", "1GiB", "--hardware", "rtx9999")
    broken = tmp_path / "machine.json"
    broken.write_text(json.dumps({"kind": "hardware", "format_version": 2, "name": "x", "gpu": {"bandwidth": 0}}))
    assert "machine.json" in refused("plan", demo_copy, "--vram", "1GiB", "--hardware", broken)
