"""Who may import whom, read from the source: also what is imported only inside a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY = {  # besides itself
    "bie_stream": set(),
    "shardgen": {"bie_stream"},
    "train": {"bie_stream"},
    "bench": {"train", "bie_stream", "shardgen"},
}


def module_files() -> dict[str, Path]:
    found = {}
    for package in MAY:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = module_files()


def imports(module: str) -> Iterator[str]:
    """Dotted names that a module imports, of our modules or of others."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)


USES = {module: set(imports(module)) for module in FILES}


def importers(package: str) -> set[str]:
    return {module for module, used in USES.items() if any(name.split(".")[0] == package for name in used)}


def test_packages_import_only_what_lies_below_them() -> None:
    assert {"bie_stream.shards", "shardgen.build", "train.engine"} <= set(FILES)
    wrong = [
        f"{module} imports {name}"
        for module, used in USES.items() for here in [module.split(".")[0]] for name in sorted(used)
        if (there := name.split(".")[0]) in MAY and there not in {here, *MAY[here]}
    ]  # fmt: skip
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: {name for name in used if name in FILES and name != module} for module, used in USES.items()}
    while free := [module for module, used in left.items() if not used & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these modules are in a circle, or import one"


def test_only_the_engine_imports_deepspeed() -> None:
    assert importers("deepspeed") == {"train.engine"}


def test_only_the_dali_back_end_and_its_probe_import_nvidia() -> None:
    peers = {module for module in FILES if module.startswith("bench.peers.")}
    assert importers("nvidia") - peers == {"bie_stream.dali", "bie_stream.loader"}
