"""Load the shipped model while the image is built: fills the caches, and proves that the image can serve."""

from pathlib import Path
from tempfile import TemporaryDirectory

from model.evaluation import network_passes
from service.bootstrap import open_service
from service.core.device.engine import private_folder
from service.settings import Layer, Settings, load_settings


def without_secrets(folder: Path) -> Layer:
    """Return flags that keep tokens and state out of the image: all its containers would share them."""
    tokens = {"admin_token_file": folder / "admin", "scrape_token_file": folder / "scrape"}
    return {"auth": tokens, "jobs": {"mode": "off"}}


def load_models(settings: Settings) -> None:
    """Load the models as a service does that starts with these settings."""
    with open_service(settings) as service:
        service.load_models()


def keep_only_what_is_served(settings: Settings) -> None:
    """Delete the graphs that lost the race of precisions, 39 MB; its winner and the kernels stay."""
    for graph in (settings.models.cache_folder / "openvino").glob("*.blob"):
        graph.unlink()
    load_models(settings)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        settings = load_settings(flags=without_secrets(Path(folder)))
        network_passes.warm_up(private_folder(settings.models.cache_folder / "numba"))
        load_models(settings)
        keep_only_what_is_served(settings)
