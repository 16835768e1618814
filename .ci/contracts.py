"""A contract for import-linter: a list of what may be imported, where its own lists are of what may not."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class Allowed(Contract):
    """Modules import themselves, the standard library and what is listed, nothing else.

    `packages` are the packages concerned, `except_under` names children that the contract leaves out,
    `allowed` top-level packages or modules of ours, each with everything below it.
    """

    packages = fields.ListField(subfield=fields.StringField())
    except_under = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        faults = []
        for package in self.packages:
            left_out = [f"{package}.{child}" for child in self.except_under]
            fine = [package, *self.allowed]
            for importer in sorted(graph.find_descendants(package) | {package}):
                if _below(importer, left_out):
                    continue
                for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                    standard = imported.partition(".")[0] in sys.stdlib_module_names
                    if _below(imported, left_out) or not (standard or _below(imported, fine)):
                        (detail, *_) = graph.get_import_details(importer=importer, imported=imported)
                        faults.append(f"{importer}:{detail['line_number']} imports {imported}")
        return ContractCheck(kept=not faults, metadata={"faults": faults})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for fault in check.metadata["faults"]:
            output.print_error(fault, bold=False)


def _below(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
