"""What a segmentation network is: how it is fed, read, scored and stored."""
