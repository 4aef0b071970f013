"""uvicorn's protocol with limits on connections."""
