"""The plan alone, as a JSON text that this product reads again."""

from __future__ import annotations

from pathlib import Path

from lowrank_core.errors import InvalidFile
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register
from lowrank_core.exports._provenance import plan_document
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import whole_or_nothing, writing
from lowrank_core.store.reference import in_its_folder
from lowrank_core.workspace import Workspace


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the plan; it is read back before it counts as saved."""
    report(Progress("writing the plan"))
    text = plan_document(workspace, compressed)
    content = text.encode()
    with whole_or_nothing(path) as temporary:
        with writing(temporary) as file:
            file.write(content)
        if RankPlan.from_json(temporary.read_bytes()) != compressed.plan:
            raise InvalidFile(f"{path} was not saved: what was read back is not what was written.")
    return Exported(str(path), len(content), None, compressed.score)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """The lines that apply the plan to its model, corrected as it was."""
    if ref is None:
        code = f"""from lowrank_core import Workspace, read_plan

workspace = Workspace.of(model, example_inputs, eval_data)  # as when the plan was made
found = workspace.candidate_in(read_plan(open({file!r}, "rb").read()))
model = workspace.compress(found.plan, found.correction)
"""
        return (Snippet("with lowrank_core", code),)
    name = in_its_folder(ref)
    code = f"""from lowrank_core import Workspace, read_plan

workspace = Workspace.open({name!r})
found = workspace.candidate_in(read_plan(open({file!r}, "rb").read()))
model = workspace.compress(found.plan, found.correction)
"""
    return (Snippet("with lowrank_core", code),)


register(Export("plan", "Rank plan (JSON)", ".json", write, snippets))
