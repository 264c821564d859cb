"""Whole commands with every stage in seconds: the gate, comparing, two at once, a bucket."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.datasets.shapes.rendering import render_conversations
from pipeline.progress import silent
from tests.conftest import Cli, ForkedCli, assignments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def statuses(printed: str) -> dict[str, str]:
    lines = [line.split() for line in printed.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) > 1 and line[1] in ("made", "cached")}


def test_a_refused_run_says_why_and_can_be_published_anyway(
    tiny_store: Path, tiny: Mapping[str, object], tmp_path: Path
) -> None:
    copy, photo = tmp_path / "store", tmp_path / "photo.png"
    shutil.copytree(tiny_store, copy)
    shutil.rmtree(copy / "published")
    Image.new("RGB", (64, 48), "red").save(photo)
    cli = ForkedCli(copy, PHIVISION_PUBLISH_ANYWAY="false")
    refused = cli("run", *assignments(tiny))
    assert refused.returncode == 3
    assert "not published: cider_d" in refused.stdout
    assert len(list((copy / "published").iterdir())) == 1  # judged once
    asked = cli("ask", str(photo), "What is it?")
    assert asked.returncode == 1
    assert "no published assistant" in asked.stderr
    assert "published anyway: cider_d" in cli.ok("run", *assignments(tiny), "--publish-anyway")
    (report,) = (copy / "reports").glob("*.html")
    assert "published anyway: cider_d" in report.read_text()
    listed = cli.ok("rollback", "--list")
    assert listed.index("forced") < listed.index("refused")


def test_compare_runs_all_variants_and_publishes_none(
    tiny_store: Path, tiny: Mapping[str, object], tmp_path: Path, prefect_server: Mapping[str, str]
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(tiny_store, copy)
    cli = ForkedCli(copy, PHIVISION_PUBLISH_ANYWAY="false", **prefect_server)
    before = {path.name: path.read_bytes() for path in (copy / "published").iterdir()}
    latest = (copy / "refs" / "latest").read_bytes()
    variants = ("--variant", "base:", "--variant", "short: finetune.epochs=0.5")
    report = tmp_path / "compared.html"
    printed = cli.ok("compare", *assignments(tiny), *variants, "--report", str(report))
    found = statuses(printed.partition("── short")[2])
    assert {name for name, status in found.items() if status == "made"} == {
        "finetune",
        "evaluate",
        "publish",
    }
    assert set(statuses(printed.partition("── short")[0]).values()) == {"cached"}
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == ["| variant", "| base", "| short"]
    assert "against base" in table[0]
    assert {p.name: p.read_bytes() for p in (copy / "published").iterdir()} == before
    assert (copy / "refs" / "latest").read_bytes() == latest
    text = report.read_text()
    assert "<h3>short</h3>" in text
    assert "<td>finetune.epochs</td>" in text


def write_mixture(folder: Path, tiny: Mapping[str, object]) -> Path:
    """Write a table of images, conversations about two sources, and a recipe that mixes them."""
    (folder / "table").mkdir(parents=True)
    lines, talks = ["image,caption,split"], []
    for number in range(40):
        name, colour = f"{number:03d}.png", ("crimson", "navy", "olive")[number % 3]
        Image.new("RGB", (60 + number, 48), colour).save(folder / "table" / name)
        split = ("train", "train", "train", "val", "test")[number % 5]
        lines.append(f"{name},nothing but the colour {colour},{split}")
        turns = [{"from": "human", "value": "<image>\nWhich colour?"}]
        turns.append({"from": "gpt", "value": colour})
        talks.append({"id": name, "image": f"mine/{name}", "conversations": turns})
    (folder / "table/pairs.csv").write_text("\n".join(lines))
    (folder / "talks.json").write_text(json.dumps(talks))
    rendered = folder / "rendered.json"
    counts = {key: int(str(tiny[f"images.source.{key}"])) for key in ("train", "test")}
    numbers = {"train_images": counts["train"], "val_images": counts["test"]}
    render_conversations(rendered, seed=0, advance=silent, **numbers)
    table = {"kind": "table", "path": str(folder / "table/pairs.csv"), "root": ".", "test_share": 0}
    columns = {"image": "image", "caption": "caption", "split": "split"}
    recipe = {
        **{key: value for key, value in tiny.items() if not key.startswith("images.source")},
        "images.source": {
            "kind": "mixture",
            "sources": {"shapes": {"kind": "demo", **counts}, "mine": {**table, **columns}},
            "limits": {"shapes": 50},
        },
        "conversations.source": {
            "kind": "mixture",
            "sources": {
                name: {"kind": "file", "path": str(path), "sha256": None}
                for name, path in (("shapes", rendered), ("asked", folder / "talks.json"))
            },
            "limits": {},
        },
        "examples.filters": {"twin": "duplicate_similarity > 0.999 AND source <> 'shapes'"},
        "evaluate.images": 20,
        "evaluate.questions": 40,
    }
    path = folder / "mixture.json"
    path.write_text(json.dumps({"preset": "demo", **recipe}))
    return path


def test_a_mixture_goes_through_every_stage_and_each_source_has_scores(
    tiny: Mapping[str, object], prefect_server: Mapping[str, str], tmp_path: Path
) -> None:
    recipe = write_mixture(tmp_path / "data", tiny)
    cli = ForkedCli(tmp_path / "store", **prefect_server)
    cli.ok("run", "--recipe", str(recipe), "--publish-anyway")

    def rows(query: str) -> list[dict[str, object]]:
        return json.loads(cli.ok("sql", query, "--format", "json"))

    counted = "SELECT source, kind, count(*) > 0 AS some FROM examples GROUP BY ALL ORDER BY ALL"
    found = [(row["source"], row["kind"]) for row in rows(counted)]
    assert found == [
        ("asked", "conversation"),
        ("mine", "caption"),
        ("shapes", "caption"),
        ("shapes", "conversation"),
    ]
    scored = rows(
        "SELECT DISTINCT source, metric FROM metrics_by_source WHERE condition = 'real' "
        "AND stage = 'finetune' AND metric IN ('cider_d', 'answer_accuracy') ORDER BY ALL"
    )
    assert [(row["source"], row["metric"]) for row in scored] == [
        ("asked", "answer_accuracy"),
        ("mine", "cider_d"),
        ("shapes", "answer_accuracy"),
        ("shapes", "cider_d"),
    ]
    # Plain images of one colour are nearly alike: of each split one of each colour is kept.
    (twins,) = rows("SELECT count(*) AS n FROM drops WHERE reason = 'twin'")
    assert int(str(twins["n"])) > 40
    (near,) = rows("SELECT count(*) AS n FROM nearest WHERE similarity > 0.999")
    assert int(str(near["n"])) >= 30
    printed = cli.ok("scores")
    assert "by source of images or conversations" in printed
    limited = "SELECT count(*) AS n FROM images WHERE source = 'shapes' AND split <> 'test'"
    assert 45 <= int(str(rows(limited)[0]["n"])) <= 50  # some rendered files are broken on purpose
    assert set(statuses(cli.ok("run", "--recipe", str(recipe))).values()) == {"cached"}


@pytest.mark.slow  # test_materialize.py has two processes at work on one store, too
def test_two_runs_at_once_make_each_stage_once(
    tiny_store: Path, tiny: Mapping[str, object], tmp_path: Path, prefect_server: Mapping[str, str]
) -> None:
    """Two commands, each with another Prefect server, on one empty store."""
    cli = ForkedCli(tmp_path / "store")
    clis = [cli, ForkedCli(tmp_path / "store", **prefect_server)]
    told = ("run", *assignments(tiny))
    with ThreadPoolExecutor(2) as people:
        both = list(people.map(lambda each: each.ok(*told, timeout=500), clis))
    found = [statuses(printed) for printed in both]
    assert len(found[0]) == 9
    for stage in found[0]:
        assert sorted(each[stage] for each in found) == ["cached", "made"]
    query = "SELECT stage, digest FROM artifacts ORDER BY stage"
    alone = ForkedCli(tiny_store).ok("sql", query, "--format", "csv")
    assert cli.ok("sql", query, "--format", "csv") == alone


@pytest.mark.s3
def test_a_bucket_holds_the_same_as_a_folder(
    tiny_store: Path,
    tiny: Mapping[str, object],
    tmp_path: Path,
    s3_server: str,
    prefect_server: Mapping[str, str],
) -> None:
    import s3fs

    from pipeline.data.datasets.shapes.drawing import draw
    from pipeline.data.datasets.shapes.scenes import make_scene

    del s3_server  # the environment names it
    s3fs.S3FileSystem().mkdir("tiny")
    place = {"PHIVISION_STORE": "s3://tiny/vlm", "PHIVISION_WORKDIR": str(tmp_path / "work")}
    cli = ForkedCli(tmp_path, **place, **prefect_server)
    assert set(statuses(cli.ok("run", *assignments(tiny))).values()) == {"made"}
    assert "nothing to do" in cli.ok("run", *assignments(tiny))
    query = "SELECT stage, digest FROM artifacts ORDER BY stage"
    assert cli.ok("sql", query, "--format", "csv") == ForkedCli(tiny_store).ok(
        "sql", query, "--format", "csv"
    )
    draw(make_scene(seed=7, index=1)).save(tmp_path / "photo.jpg")
    cli.ok("ask", str(tmp_path / "photo.jpg"), "How many objects are there?")


@pytest.mark.parametrize("ending", ["SIGTERM", "ctrl-c", "SIGKILL"])
def test_a_run_that_ends_early_takes_its_server_along(
    tiny: Mapping[str, object], tmp_path: Path, ending: str
) -> None:
    run = started(tiny, tmp_path)
    server = server_of(run.pid)
    if ending == "ctrl-c":  # a terminal tells the whole group
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.send_signal(signal.Signals[ending])
    _, said = run.communicate(timeout=100)  # a run that waits for its server would take minutes
    if ending != "SIGKILL":
        assert "stopped; finished work is kept" in said
        # Python repeats the signal at its end where it came while code from a string ran.
        assert run.returncode in (130, -signal.SIGINT)
    assert not re.search("leaked|Traceback|Fatal", said)
    for _ in range(300):
        if not server.exists() or "Z (zombie)" in (server / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the server of the run is still there")


def test_a_run_at_work_can_be_watched_and_asked_what_it_does(
    tiny: Mapping[str, object], tmp_path: Path, prefect_server: Mapping[str, str]
) -> None:
    cli = ForkedCli(tmp_path / "store")
    assert "no run is at work in" in cli.ok("watch")  # and later ones start at once
    run = started(tiny, tmp_path, **prefect_server)
    shown = cli.ok("watch")
    assert re.search(r"images +made", shown)
    assert re.search(r"conversations +(at work|made)", shown)
    assert re.search(r"publish +waiting", shown)
    assert f"process {run.pid}" in shown
    assert "time left: not known" in shown  # no stage was made here before
    run.send_signal(signal.SIGUSR1)
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=100)
    assert re.search(r"publish +waiting", said)
    assert "time left" in said
    assert "no run is at work in" in cli.ok("watch")


def test_a_run_ends_with_one_line_as_soon_as_its_server_dies(
    tiny: Mapping[str, object], tmp_path: Path
) -> None:
    run = started(tiny, tmp_path)
    os.kill(int(server_of(run.pid).name), signal.SIGKILL)
    _, said = run.communicate(timeout=100)  # Prefect's engine alone took 143 s
    assert run.returncode == 1
    assert said.count("Prefect's server does not answer any more: it ended with SIGKILL") == 1
    assert "finished work is kept" in said
    assert not re.search("leaked|Traceback|Fatal", said)


def started(
    tiny: Mapping[str, object], tmp_path: Path, **environment: str
) -> subprocess.Popen[str]:
    """Return a run in a session of its own that has just made the images."""
    # A shell's background jobs, pytest among them, ignore Ctrl-C, and what they start inherits it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", *assignments(tiny)],
        env=Cli(tmp_path / "store", **environment).environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert any(line.startswith("images") for line in run.stdout)
    return run


def server_of(pid: int) -> Path:
    """Return the folder in /proc of the server that a run has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    mine = [child for children in lists for child in children.read_text().split()]
    (server,) = [
        p for p in mine if b"flows.runner.own_server" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    return Path(f"/proc/{server}")


def test_a_stage_that_cannot_go_on_is_told_in_one_line_and_keeps_the_work(
    tiny_store: Path, tiny: Mapping[str, object], tmp_path: Path, prefect_server: Mapping[str, str]
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(tiny_store, copy)
    held = {**tiny, "examples.filters.held": "split = 'validation'"}
    done = ForkedCli(copy, **prefect_server)("run", *assignments(held))
    assert done.returncode == 1
    assert "no caption is about a validation image" in done.stderr
    assert "images.validation_share" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert statuses(done.stdout)["features"] == "cached"


def test_the_module_is_the_command(
    tiny_store: Path, tiny: Mapping[str, object], tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(tiny_store, copy)
    printed = [
        subprocess.run(
            [sys.executable, "-m", *command, *assignments(tiny)],
            env=Cli(copy).environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in (["flows.cli", "run"], ["flows.full_pipeline"])
    ]
    shown, again = (re.sub(r"\d{8}T?-?\d*\S*", "", text) for text in printed)
    assert shown == again
    assert set(statuses(shown).values()) == {"cached"}
