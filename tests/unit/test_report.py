"""The report of a sweep, in good states and bad: one page, its data, its numbers."""

import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from support.analysis_fixtures import FEW, FakeRun, demo_runs, known_runs, loss_curve, write_store, write_sweep

import analysis
from analysis.answer import answer
from analysis.report.build import write_report
from analysis.report.page import Choice
from analysis.report.wording import provenance
from analysis.store import Store
from analysis.summary import members_of, summarize
from analysis.verdicts import sentence
from muon_core.statuses import last_line
from muon_core.store.folder import Folder
from muon_core.tables import PROJECTIONS

_VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Fails on unbalanced tags; collects ids, links, headings and the texts of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.scopes: list[str | None] = []
        self.cells: list[str] = []
        self.children: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag == "figure":
            self.children[str(values["id"])] = []
        elif self.open and self.open[-1] == "figure":
            self.children[next(reversed(self.children))].append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag == "th":
            self.scopes.append(values.get("scope"))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def view_of(folder: Path, runs: list[FakeRun], **options: object) -> Store:
    write_store(folder, runs, **options)  # type: ignore[arg-type]
    return analysis.open_store(folder).sweep("demo")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A report of four arms with a diverged, a failed and a run to come."""
    folder = tmp_path_factory.mktemp("demo")
    view = view_of(folder / "store", demo_runs(), unstarted=1)
    return view, write_report(view, folder / "report").page


def test_the_page_is_well_formed_and_its_ids_are_unique(demo: tuple[Store, Path]) -> None:
    page = Page(demo[1].read_text())
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == page.tags.count("main") == 1
    # arms twice, way to the target, first steps, tuning, excluded runs, speed, runs
    assert page.tags.count("caption") == page.tags.count("table") == 8
    figures = json.loads((demo[1].parent / "report.json").read_text())["figures"]
    assert page.tags.count("figcaption") == page.tags.count("figure") == len(figures)
    assert {"val_loss", "val_loss_difference", *(f"effective_rank_{name}" for name in PROJECTIONS)} <= set(page.ids)
    assert not [level for level in page.tags if level in ("h3", "h4", "h5", "h6")]
    assert all(children == ["div", "figcaption"] for children in page.children.values())  # a caption is first or last
    assert set(page.scopes) == {"col", "row"}


def test_the_page_needs_no_network_and_no_script(demo: tuple[Store, Path]) -> None:
    text = demo[1].read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "@import" not in text
    assert not re.search(r"url\((?!#|data:font)", text)
    for link in page.links:
        inside = link.startswith("data:image/png") or link.removeprefix("#") in page.ids
        assert inside or (demo[1].parent / link).is_file(), link
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_the_verdicts_and_counts(demo: tuple[Store, Path]) -> None:
    view, path = demo
    text, summary = path.read_text(), summarize(view)
    for arm in summary.arms:
        assert f"<li>{sentence(arm, summary)}</li>" in text
    assert f'<p class="answer">{answer(summary)}</p>' in text
    assert "10 done, 1 diverged, 1 failed, 1 planned." in text
    assert "Does Muon reach a lower validation loss than AdamW?" in text
    for warning in summary.warnings:
        assert f"<li>{warning}</li>" in text


def test_the_page_lists_every_run_with_the_last_line_of_its_error(demo: tuple[Store, Path]) -> None:
    cells = Page(demo[1].read_text()).cells
    for run in demo_runs():
        assert run.run_id in cells
    assert "RuntimeError: <disk> full" in cells
    assert "non-finite loss at step 71" in cells
    assert cells[cells.index("isotropic-s9000-0badcafe") + 3] == "planned"


def test_report_json_holds_the_numbers_of_the_summary(demo: tuple[Store, Path]) -> None:
    view, path = demo
    numbers, summary = json.loads((path.parent / "report.json").read_text()), summarize(view)
    assert numbers["counts"] == summary.counts
    assert (numbers["errors"], numbers["warnings"]) == (list(summary.errors), list(summary.warnings))
    assert summary.arms[1].pooled is not None
    assert numbers["arms"][1]["pooled"]["difference"] == summary.arms[1].pooled.difference
    assert [run["run_id"] for run in numbers["runs"]][:3] == [run.run_id for run in demo_runs()][:3]
    for row, arm in zip(numbers["arms"], summary.arms, strict=True):
        assert (row["arm"], row["verdict"], row["mean"], row["counts"]) == (arm.arm, arm.verdict, arm.mean, arm.counts)
        if arm.comparison is not None:
            assert row["comparison"]["difference"] == arm.comparison.difference
            assert row["comparison"]["percent"] == arm.comparison.percent
            assert row["comparison"]["n"] == arm.comparison.n
    names = [figure["name"] for figure in numbers["figures"]]
    assert names.index("val_loss") < names.index("val_loss_difference") < names.index("effective_rank_q")
    assert numbers["answer"] == answer(summary)


def test_every_figure_has_its_description_and_data_beside_it(demo: tuple[Store, Path]) -> None:
    path = demo[1]
    text, figures = path.read_text(), json.loads((path.parent / "report.json").read_text())["figures"]
    for figure in figures:
        assert f'<p class="description">{figure["description"]}</p>' in text
        assert f'<desc id="{figure["name"]}-desc">{figure["description"]}</desc>' in text
        for file in figure["data"]:
            assert pl.read_csv(path.parent / file).height > 0
        assert f"Values: {figure['data'][0]}." in figure["description"]


def test_the_csv_files_hold_what_the_tables_hold(demo: tuple[Store, Path]) -> None:
    view, path = demo
    data = path.parent / "data"
    seeds = pl.read_csv(data / "val_loss.csv")
    val = view.val.collect()
    assert sorted(seeds.select("run_id", "step", "value").rows()) == sorted(
        val.select("run_id", "step", "val_loss").rows()
    )
    cells = pl.read_csv(data / "effective_rank_q_s42.csv")
    rows = view.layers.filter(pl.col("projection") == "q", pl.col("run_id").str.contains("-s42-")).collect()
    assert cells.height == rows.height == 4 * 4 * 11
    arms = pl.read_csv(data / "arms.csv")
    assert arms.filter(pl.col("arm") == "adamw")["difference"].item() == pytest.approx((0.14 + 0.11 + 0.16) / 3)
    assert pl.read_csv(data / "runs.csv").height == 13


def test_the_same_results_give_the_same_page(demo: tuple[Store, Path], tmp_path: Path) -> None:
    """Of large sweeps too: Polars would stream them, and add sums of its threads in the order these end."""
    engines = set()
    page = write_report(
        demo[0], tmp_path, tell=lambda part: engines.add(pl.Config.state()["POLARS_ENGINE_AFFINITY"])
    ).page
    assert page.read_bytes() == demo[1].read_bytes()
    assert engines == {"in-memory", None}  # None behind the last query


def test_the_markdown_has_the_answer_and_pictures_with_alternative_texts(demo: tuple[Store, Path]) -> None:
    view, path = demo
    text, figures = (path.parent / "report.md").read_text(), json.loads((path.parent / "report.json").read_text())
    assert answer(summarize(view)) in text
    described = {figure["name"]: figure["description"] for figure in figures["figures"]}
    shown = re.findall(r"^!\[(.*)\]\(figures/(.*)\.png\)$", text, re.MULTILINE)
    assert {"forest", "val_loss"} <= {name for _, name in shown}
    for alternative, name in shown:
        assert alternative.replace("\\", "") == described[name]
        assert (path.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(figures["files"]) == sorted(
        str(file.relative_to(path.parent))
        for folder in ("data", "figures")
        for file in (path.parent / folder).iterdir()
    )


@pytest.mark.parametrize("seeds", [(1, 2), (1, 1)])
def test_arms_with_disjoint_seeds_are_not_compared_and_others_are(tmp_path: Path, seeds: tuple[int, int]) -> None:
    runs = [
        FakeRun("muon", seeds[0], loss_curve(3.0), role="baseline", with_layers=False),
        FakeRun("adamw", seeds[1], loss_curve(3.5), with_layers=False),
    ]
    text = write_report(view_of(tmp_path / "store", runs), tmp_path / "report", FEW).page.read_text()
    assert ("shares no finished seed with it" in text) == (seeds == (1, 2))
    assert ('<figure id="forest">' in text) == (seeds == (1, 1))


def test_two_hundred_runs_have_a_page_that_lists_them_all(tmp_path: Path) -> None:
    runs = [FakeRun("muon", seed, {0: 7.0, 20: 3 + seed / 1000}, with_layers=False) for seed in range(200)]
    page = Page(write_report(view_of(tmp_path / "store", runs), tmp_path / "report", FEW).page.read_text())
    assert {run.run_id for run in runs} <= set(page.cells)


def test_another_layer_metric_is_shown_and_defined(tmp_path: Path) -> None:
    path = write_report(
        view_of(tmp_path / "store", known_runs()[:1]), tmp_path / "report", Choice(("effective_rank_share",))
    ).page
    assert "<dt>effective_rank_share</dt><dd>effective_rank / min(rows, cols).</dd>" in path.read_text()
    assert (tmp_path / "report/data/effective_rank_share_up_s42.csv").is_file()


def states() -> dict[str, list[FakeRun]]:
    """Sweeps in every unfinished or broken state."""
    base = FakeRun("muon", 1, loss_curve(3.0), role="baseline")
    return {
        "one seed each": [base, FakeRun("adamw", 1, loss_curve(3.5))],
        "only running": [FakeRun("muon", 1, {0: 7.0, 20: 6.0}, None, "baseline"), FakeRun("adamw", 1, {0: 7.0}, None)],
        "only started": [FakeRun("muon", 1, {}, None, "baseline", with_layers=False)],
        "all failed": [FakeRun("muon", 1, {}, "failed", "baseline", facts={"error": "boom"}, with_layers=False)],
        "an arm without rows": [base, FakeRun("adamw", 1, {}, "failed", facts={"error": "boom"}, with_layers=False)],
        "baseline failed": [FakeRun("muon", 1, {}, "failed", "baseline"), FakeRun("adamw", 1, loss_curve(3.5))],
        "no baseline": [FakeRun("adamw", 1, loss_curve(3.5))],
        "no layers": [FakeRun("muon", 1, loss_curve(3.0), role="baseline", with_layers=False)],
        "no finite loss": [FakeRun("muon", 1, {0: math.nan, 20: math.nan}, role="baseline")],
        "evaluated once": [FakeRun("muon", 1, {0: 7.0}, None, "baseline"), FakeRun("adamw", 1, {0: 7.0}, None)],
        "diverged at once": [base, FakeRun("adamw", 1, {0: float("nan")}, "diverged", facts={"error": "nan"})],
    }


@pytest.mark.parametrize("state", states())
def test_a_report_is_written_in_any_state_of_a_sweep(tmp_path: Path, state: str) -> None:
    runs = states()[state]
    path = write_report(view_of(tmp_path / "store", runs, unstarted=1), tmp_path / "report", FEW).page
    page, numbers = Page(path.read_text()), json.loads((tmp_path / "report/report.json").read_text())
    assert {run.run_id for run in runs} <= set(page.cells)
    assert sum(numbers["counts"].values()) == len(runs) + 1
    has_rows, has_layers = any(run.val for run in runs), any(run.val and run.with_layers for run in runs)
    all_nan = state == "no finite loss"
    assert ("val_loss was measured 2 times, with no finite value." in path.read_text()) == all_nan
    assert ("No run has been evaluated yet." in path.read_text()) == (not has_rows)
    assert ("No layer has been measured yet." in path.read_text()) == (not has_layers)


def test_a_report_of_a_sweep_without_runs_is_written(tmp_path: Path) -> None:
    write_sweep(Folder(tmp_path / "store"), "demo", [])
    path = write_report(analysis.open_store(tmp_path / "store").sweep("demo"), tmp_path / "report", FEW).page
    assert "no runs." in path.read_text()


def test_the_page_says_no_layer_value_is_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.analysis_fixtures.layer_rows", lambda row, run: [
        row | {"layer": 0, "projection": "q", "rows": 4, "cols": 4, "effective_rank": math.nan}
    ])  # fmt: skip
    path = write_report(view_of(tmp_path / "store", known_runs()[:1]), tmp_path / "report", FEW).page
    assert "<p>effective_rank was measured 11 times, with no finite value.</p>" in path.read_text()


def test_errors_stand_before_the_verdicts_and_in_the_json(tmp_path: Path) -> None:
    runs = known_runs()
    for run in runs[:2]:
        run.facts["init_hash"] = "same"
    view = view_of(tmp_path / "store", runs)
    text = write_report(view, tmp_path / "report", FEW).page.read_text()
    (error,) = summarize(view).errors
    shown = text.index(f"<li><strong>error:</strong> {error}</li>")
    assert text.index('<p class="answer">No answer: runs that should be independent are not') < shown
    assert (
        shown
        < text.index("<table>")
        < text.index("<li>muon: invalid: seeds 42, 137 of muon have the same initial weights")
    )
    numbers = json.loads((tmp_path / "report/report.json").read_text())
    assert numbers["errors"] == [error]
    assert [(arm["verdict"], arm["errors"]) for arm in numbers["arms"]] == [("invalid", [error]), ("baseline", [])]


def test_an_arm_of_the_baselines_runs_is_drawn_once_and_not_against_itself(tmp_path: Path) -> None:
    storage = write_store(tmp_path / "store", known_runs())
    listed = [{"run_id": r.run_id, "block": "b", "role": r.role, "arm": r.optimizer} for r in known_runs()]
    again = [row | {"block": "again", "role": "control"} for row in listed if row["arm"] == "adamw"]
    write_sweep(storage, "demo", [*listed, *again], number=2)
    write_report(analysis.open_store(tmp_path / "store").sweep("demo"), tmp_path / "report", FEW)
    data = tmp_path / "report/data"
    assert set(pl.read_csv(data / "val_loss.csv")["arm"]) == {"muon", "b: adamw"}
    assert set(pl.read_csv(data / "val_loss_difference.csv")["arm"]) == {"muon"}


def test_make_again_names_the_store_and_the_metric(tmp_path: Path) -> None:
    view = view_of(tmp_path / "my store", known_runs()[:1])
    choice = Choice(("stable_rank", "entropy"), seed=42, projections=("q",))
    terms = dict(provenance(view.record, members_of(view), view.storage.url, choice))  # type: ignore[arg-type]
    assert shlex.split(terms["Make again"]) == [
        "muon", "report", "demo", "--store", view.storage.url, "--metric", "stable_rank", "--metric", "entropy",
        "--projection", "q", "--seed", "42", "-o", "FOLDER",
    ]  # fmt: skip
    terms = dict(provenance(view.record, members_of(view), view.storage.url, Choice()))  # type: ignore[arg-type]
    assert "--metric" not in terms["Make again"]


def test_a_report_of_another_metric_removes_the_data_of_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    view = view_of(tmp_path / "store", known_runs()[:1])
    write_report(view, tmp_path / "report", FEW)
    data = tmp_path / "report/data"
    (data / "notes.csv").write_text("mine")
    write_report(view, tmp_path / "report", Choice(("entropy",), projections=("q",)))
    names = {path.name for path in data.iterdir()}
    assert not [name for name in names if name.startswith("effective_rank")]
    assert {"notes.csv", "entropy_q_s42.csv", "val_loss.csv", "runs.csv"} <= names


@pytest.mark.parametrize("earlier", ["", "[]", "{}", '{"figures": [{"data": ["../keep.csv"]}]}', '{"figures": [1]}'])
def test_a_report_beside_a_file_that_is_none_of_ours_removes_nothing(tmp_path: Path, earlier: str) -> None:
    root = tmp_path / "report"
    root.mkdir()
    (root / "report.json").write_text(earlier)
    (tmp_path / "keep.csv").write_text("mine")
    write_report(view_of(tmp_path / "store", known_runs()[:1]), root, FEW)
    assert (tmp_path / "keep.csv").read_text() == "mine"


def test_names_from_the_sweep_file_are_escaped(tmp_path: Path) -> None:
    view = view_of(tmp_path / "store", known_runs(), question='Is <b>"this"</b> & that?')
    text = write_report(view, tmp_path / "report", FEW).page.read_text()
    assert "Is &lt;b&gt;&#34;this&#34;&lt;/b&gt; &amp; that?" in text
    assert "<b>" not in text


def test_a_report_cannot_be_written_into_a_file(tmp_path: Path) -> None:
    view = view_of(tmp_path / "store", known_runs()[:1])
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"cannot write a report to .*taken: .*; choose another folder"):
        write_report(view, tmp_path / "taken", FEW)


def test_an_unknown_layer_metric_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    view = view_of(tmp_path / "store", known_runs()[:1])
    with pytest.raises(ValueError, match="unknown layer metric 'rank'"):
        write_report(view, tmp_path / "report", Choice(("rank",)))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("text", "expected"), [(None, ""), ("", ""), ("a\n  b\n\n", "b"), ("one", "one")])
def test_last_line_is_the_last_that_is_not_blank(text: str | None, expected: str) -> None:
    assert last_line(text) == expected


def test_layers_of_runs_without_a_seed_are_shown(tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, loss_curve(3.0), role="baseline"), FakeRun("adamw", 1, loss_curve(3.5))]
    for run in runs:
        run.facts["seed"] = None
    page = write_report(view_of(tmp_path / "store", runs), tmp_path / "report", FEW).page.read_text()
    assert "q projection, no seed" in page
    assert "2 arms without a seed." in page
    assert "with no finite value" not in page
    assert set(pl.read_csv(tmp_path / "report/data/effective_rank_q_no_seed.csv")["arm"]) == {"muon", "adamw"}
