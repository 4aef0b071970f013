"""Load the shipped model while the image is built: fills the caches, and proves that the image can serve."""

from service.bootstrap import open_service
from service.settings import load_settings

if __name__ == "__main__":
    with open_service(load_settings()) as service:
        service.load_models()
