"""Admission, order and waiting times of the items of a device."""
