"""Views of trajectories, as a run file asks for them: what cannot work, and what the corpus must say."""

from typing import Any

from tide_cache.building.paired_corpus import ROWS_AT_ONCE, PairedCorpus
from tide_cache.config.build import BuildRun
from tide_cache.corpus import Corpus, trajectories_of, trajectory_field
from tide_cache.corpus.trajectories import TrajectoriesOf
from tide_cache.errors import PairingError, fault_list
from tide_cache.pairing import TextTokenizer
from tide_cache.pairing.checking import shown_faults
from tide_cache.pairing.trajectory import token_steps
from tide_cache.progress import doing


def trajectories_wanted(run: BuildRun) -> TrajectoriesOf | None:
    """Return what gives the rows their trajectories, where these are given."""
    if run.views.trajectory != "given":
        return None
    return trajectory_field if run.build.trajectories is None else trajectories_of(run.build.trajectories)


def require_given_steps(run: BuildRun, corpus: Corpus[Any], teacher: TextTokenizer, paired: PairedCorpus) -> None:
    """Refuse given trajectories that do not fit the answers; a row that is left out needs none.

    Args:
        run: The run file.
        corpus: Its rows.
        teacher: The teacher's tokenizer.
        paired: The samples that rows became.

    Raises:
        PairingError: Lists the first rows.
    """
    if run.views.trajectory != "given":
        return
    fault_of: dict[int, str] = {}
    with doing("Putting trajectories to tokens", len(corpus), "rows") as phase:
        for start in range(0, len(corpus), ROWS_AT_ONCE):
            some = list(corpus.rows(start, start + ROWS_AT_ONCE))
            found = enumerate(token_steps(some, teacher), start)
            fault_of |= {row: steps for row, steps in found if isinstance(steps, str)}
            phase.advance(len(some))
    if fault_of and (faults := [fault_of[row] for row in paired.rows() if row in fault_of]):
        title = f"{run.corpus.spec}: trajectories do not fit the answers:"
        raise PairingError(fault_list(title, shown_faults(faults, len(faults)), "Nothing was computed."))


def trajectory_faults(run: BuildRun) -> list[str]:
    """List what of views.source = 'trajectory' cannot work."""
    views, faults = run.views, list[str]()
    if run.build.trajectories is not None and views.trajectory != "given":
        faults.append("build.trajectories: found a file; it needs views.source = 'trajectory', trajectory = 'given'")
    if views.source == "random":
        return faults
    if run.teacher.context == "causal":
        faults.append(
            "views.source: found 'trajectory' with teacher.context = 'causal', whose one stored view serves all masks; "
            "use a diffusion teacher, or views.source = 'random'"
        )
    if views.trajectory == "given" and run.corpus.format != "chat":
        faults.append(
            f"views.trajectory: found 'given' with corpus.format = {run.corpus.format!r}, whose rows have no text; use "
            "'decode'"
        )
    if views.steps_per_block is not None and views.steps_per_block > run.teacher.block_size:
        faults.append(
            f"views.steps_per_block: found {views.steps_per_block}; expected 1 to teacher.block_size, which is "
            f"{run.teacher.block_size}"
        )
    return faults
