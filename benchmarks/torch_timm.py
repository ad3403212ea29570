"""Import timm where torchvision does not load."""

import importlib.abc
import importlib.machinery
import sys
import types


class _AnyClass(type):
    """A class with every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return (cls.__name__, name)


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An empty torchvision: the real one does not load beside torch's CPU build.

    timm imports it, for transforms and data sets; its networks use none of it.
    """

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__version__ = "0"

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _AnyClass(name, (), {})

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


def import_timm():
    """Return timm, with a stand-in for torchvision where that cannot be imported."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        if not any(isinstance(finder, _StandIn) for finder in sys.meta_path):
            sys.meta_path.insert(0, _StandIn())
    import timm

    return timm
