"""Load a compressed network from a checkpoint of Rank Explorer; needs torch and safetensors alone."""

import json

from safetensors import safe_open
from torch import nn

PARTS = vars(nn)


def load_lowrank(model: nn.Module, path: str) -> nn.Module:
    with safe_open(path, "pt") as file:
        about, state = json.loads(file.metadata()["lowrank"]), {key: file.get_tensor(key) for key in [*file.keys()]}
    for layer in {"lowrank-checkpoint/1": about["layers"]}[about["format"]]:  # KeyError for a format of later
        inside, _, leaf = layer["name"].rpartition(".")
        owner, parts = model.get_submodule(inside), [PARTS[part["op"]](**part["args"]) for part in layer["parts"]]
        if leaf in owner._parameters:  # a weight that functions are given, or those of experts: the module stays
            experts = layer["parts"][0]["op"] == "Experts"
            new = parts[0] if experts else PARTS["Product"](*parts, turned=layer.get("turned", False))
            owner._modules[leaf] = nn.Module.to(new, owner._parameters.pop(leaf))
            continue
        old = model.get_submodule(layer["name"])
        new = (PARTS["Sequential"](*parts) if len(parts) > 1 else parts[0]).to(next(old.parameters()))
        for parent, name in [(p, n) for p in model.modules() for n, child in p._modules.items() if child is old]:
            setattr(parent, name, new)
        model = new if old is model else model
    for module in model.modules():  # fused encoders would read weights that are gone
        vars(module).update(activation_relu_or_gelu=0, use_nested_tensor=False)
    model.load_state_dict(state | {alias: state[name] for alias, name in about["ties"].items()})
    return model.eval()
