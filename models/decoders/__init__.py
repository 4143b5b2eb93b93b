"""Decoders: slots -> pictures and masks. The one of a discrete VAE's words is in its own module, ``code``."""

from psa.models.decoders.broadcast import BroadcastDecoder
from psa.models.decoders.joint import JointDecoder
from psa.models.decoders.kinds import DECODERS, DecoderPlan, decoder_of_kind, register_decoder
from psa.models.decoders.masked import MaskedDecoder
from psa.models.decoders.patch import PatchDecoder
from psa.models.decoders.transformer import SlotTransformer

__all__ = [
    "DECODERS",
    "BroadcastDecoder",
    "DecoderPlan",
    "JointDecoder",
    "MaskedDecoder",
    "PatchDecoder",
    "SlotTransformer",
    "decoder_of_kind",
    "register_decoder",
]
