"""How good a student is: held-out NLL, agreement with the teacher, block sampling."""

from tide_cache.decoding.options import SamplerOptions
from tide_cache.decoding.sampler import OnBlock, generate
from tide_cache.decoding.step import DecodingCounts
from tide_cache.evaluation.agreement import Agreement, AgreementReport, teacher_agreement
from tide_cache.evaluation.answers import OnText, generate_text
from tide_cache.evaluation.nll import TIMES, NllAtTime, NllReport, held_out_nll

__all__ = [
    "TIMES",
    "Agreement",
    "AgreementReport",
    "DecodingCounts",
    "NllAtTime",
    "NllReport",
    "OnBlock",
    "OnText",
    "SamplerOptions",
    "generate",
    "generate_text",
    "held_out_nll",
    "teacher_agreement",
]
