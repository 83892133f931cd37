"""The old name of `minivit.pretrained`; it goes in version 1.0."""

from minivit.renamed import old_names

__getattr__ = old_names(
    __name__,
    {
        "PROFILES": "minivit.pretrained.PROFILES",
        "export": "minivit.pretrained.export",
        "from_pretrained": "minivit.pretrained.from_pretrained",
        "load": "minivit.pretrained.load",
        "read_torch_file": "minivit.io.torch_file.read_torch_file",
    },
)
