"""From a row of the corpus to a sample as both tokenizers see it."""

from tide_cache.pairing.alignment import align_bytes
from tide_cache.pairing.base import Pairer
from tide_cache.pairing.encoding import Encoded
from tide_cache.pairing.pairer import SamplePairer, encode_student
from tide_cache.pairing.preprocessed import PreprocessedPairer
from tide_cache.pairing.rendered import Rendered
from tide_cache.pairing.report import Dropped, Lengths, PairedRows, PairingReport
from tide_cache.pairing.spelling import Spelling
from tide_cache.pairing.tokenizer import TextTokenizer, shared_vocab_size

__all__ = [
    "Dropped",
    "Encoded",
    "Lengths",
    "PairedRows",
    "Pairer",
    "PairingReport",
    "PreprocessedPairer",
    "Rendered",
    "SamplePairer",
    "Spelling",
    "TextTokenizer",
    "align_bytes",
    "encode_student",
    "shared_vocab_size",
]
