"""The layers of ARCHITECTURE.md, read from the imports. What is not allowed here is not allowed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = ("datakit", "evalkit", "models", "manifests", "demo")
LEAVES = {"datakit.errors", "datakit.files", "manifests"}  # import nothing of ours: everybody may use them
NUMBERS = """protocols views aggregate signature scores metrics fuse compare interop groups resample copies why curve
    table seeds published""".split()  # noqa: SIM905
ENTRY_POINTS = {"datakit.__main__", "evalkit.run", "evalkit.__main__", "demo.__main__", "demo.generate", "models.train",
                "models.benchmark", "models.cost", "models.features", "models.convert"}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in (CHECKOUT / package).rglob("*.py"):
            parts = path.relative_to(CHECKOUT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Full names of the modules that ``path`` imports, those inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                found.add(full if full in known else module)
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OURS}


def allowed(name: str) -> set[str] | None:
    """Modules (with all below them) that ``name`` may import of ours; ``None``: all."""
    package, _, rest = name.partition(".")
    if name in ENTRY_POINTS or name.startswith("evalkit.commands"):  # the parts of an entry point
        return None
    if name in LEAVES:
        return set()
    if package == "datakit":
        return {"datakit", "manifests"}
    if package == "evalkit" and rest.split(".")[0] in NUMBERS:
        return LEAVES | {"datakit.fingerprint", "evalkit.orders"} | {f"evalkit.{one}" for one in NUMBERS}
    if package == "evalkit" and rest.split(".")[0] == "report":
        return LEAVES | {"evalkit"} | ({"datakit.reader", "datakit.manifest"} if rest.endswith("thumbnails") else set())
    if name == "evalkit.remarks":
        return {"evalkit.copies", "evalkit.orders", "evalkit.scores"}
    if name == "evalkit.orders":
        return LEAVES | {"datakit.catalog", "datakit.labels", "evalkit"}
    if name in ("evalkit.infer", "evalkit.decode", "evalkit.resize", "evalkit.plan"):
        return LEAVES | {"datakit.reader", "datakit.colours", "evalkit"}
    if name.startswith("models.training"):
        return LEAVES | {"datakit.reader", "models"}
    if package == "models":
        return LEAVES | {"models.nets", "models.zoo", "models.checkpoints", "models.inputs"}
    return LEAVES


def test_layers() -> None:
    wrong = []
    for name, path in modules().items():
        may = allowed(name)
        if may is None:
            continue
        for imported in ours(imports(name, path)):
            # a package's own __init__ is what importing any of its modules runs
            if (
                not any(imported == one or imported.startswith(f"{one}.") for one in may)
                and imported != name.split(".")[0]
            ):
                wrong.append(f"{name} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_numbers_need_no_torch() -> None:
    wrong = []
    for name, path in modules().items():
        if name.startswith("evalkit.") and name.split(".")[1] in NUMBERS:
            heavy = {one.split(".")[0] for one in imports(name, path)} & {"torch", "torchvision"}
            wrong += [f"{name} imports {one}" for one in heavy]
    assert not wrong


def test_every_error_is_drawn_in_the_tree() -> None:
    from datakit import errors

    def drawn() -> dict[str, str]:
        stack: list[tuple[int, str]] = []
        parents = {}
        for line in (errors.__doc__ or "").splitlines():
            match = re.match(r"( {4,})([A-Z]\w+)", line)
            if match:
                depth = len(match[1])
                stack = [(d, n) for d, n in stack if d < depth]
                parents[match[2]] = stack[-1][1] if stack else "Exception"
                stack.append((depth, match[2]))
        return parents

    defined = {
        name: value.__mro__[1].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert drawn() == defined


def test_no_data_set_is_named_in_code() -> None:
    names = [path.stem for path in (CHECKOUT / "manifests/datasets").glob("*.toml")]
    assert names
    wrong = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
            and isinstance(node.body[0], ast.Expr)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                if node.value in names:
                    wrong.append(f"{name}:{node.lineno}: {node.value!r}")
                if re.search(r"https?://", node.value) and name != "demo.generate":
                    wrong.append(f"{name}:{node.lineno}: {node.value!r}")
    assert not wrong, "\n".join(wrong)
