"""Decoders: slots -> pictures and masks."""

from psa.models.decoders.broadcast import BroadcastDecoder
from psa.models.decoders.joint import JointDecoder
from psa.models.decoders.masked import MaskedDecoder
from psa.models.decoders.patch import PatchDecoder

__all__ = ["BroadcastDecoder", "JointDecoder", "MaskedDecoder", "PatchDecoder"]
