"""Load the shipped model while the image is built: fills the caches, and proves that the image can serve."""

from pathlib import Path
from tempfile import TemporaryDirectory

from model.evaluation import network_passes
from service.bootstrap import open_service
from service.core.device.engine import private_folder
from service.settings import Layer, load_settings


def without_secrets(folder: Path) -> Layer:
    """Return flags that keep tokens and state out of the image: all its containers would share them."""
    tokens = {"admin_token_file": folder / "admin", "scrape_token_file": folder / "scrape"}
    return {"auth": tokens, "jobs": {"mode": "off"}}


def without_graphs(cache_folder: Path) -> None:
    """Delete the compiled graphs: 43 MB, for some seconds of the first start."""
    for graph in (cache_folder / "openvino").glob("*.blob"):
        graph.unlink()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        settings = load_settings(flags=without_secrets(Path(folder)))
        network_passes.warm_up(private_folder(settings.models.cache_folder / "numba"))
        with open_service(settings) as service:
            service.load_models()
        without_graphs(settings.models.cache_folder)
