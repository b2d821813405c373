"""What of a picture a model's answer rests on."""

from frostline.explaining.grad_cam import NoMapError, Seam, find_seam, heat_maps

__all__ = ["NoMapError", "Seam", "find_seam", "heat_maps"]
