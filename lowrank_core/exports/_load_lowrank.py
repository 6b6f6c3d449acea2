"""Load a compressed network from a checkpoint of Rank Explorer; needs torch and safetensors alone."""

import json

from safetensors import safe_open
from torch import nn

PARTS = vars(nn)


def load_lowrank(model: nn.Module, path: str) -> nn.Module:
    with safe_open(path, "pt") as file:
        about, state = json.loads(file.metadata()["lowrank"]), {key: file.get_tensor(key) for key in [*file.keys()]}
    for layer in {"lowrank-checkpoint/1": about["layers"]}[about["format"]]:  # KeyError for a format of later
        inside, _, leaf = (place := layer["name"]).rpartition(".")
        host, parts = model.get_submodule(inside), [PARTS[part["op"]](**part["args"]) for part in layer["parts"]]
        old = nn.ParameterList(p for n, p in host._parameters.items() if n == leaf) or model.get_submodule(place)
        new = nn.Module.to(PARTS["Sequential"](*parts) if len(parts) > 1 else parts[0], next(old.parameters()))
        for at, name in [(p, n) for p in model.modules() for n, m in p._modules.items() if m is old] or [(host, leaf)]:
            at._modules[name], _ = new, at._parameters.pop(name, None)
        model = new if old is model else model
    for module in model.modules():  # fused encoders would read weights that are gone
        vars(module).update(activation_relu_or_gelu=0, use_nested_tensor=False)
    model.load_state_dict(state | {alias: state[name] for alias, name in about["ties"].items()})
    return model.eval()
