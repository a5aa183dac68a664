"""Two Python loops over tokens, for comparison with the vectorised alignment; neither is used by the program.

`reference_loop` does per token what the reference's aligner does: looks for special tokens on both sides, keeps the
lengths so far in dictionaries, collects the tokens, and compares the chunks' text at the end. `bare_loop` does the
least that finds the chunks of equal bytes.
"""

from collections.abc import Sequence

Tokens = Sequence[bytes]
Chunks = list[tuple[int, int, int, int]]


def reference_loop(
    teacher: Tokens, student: Tokens, teacher_specials: Sequence[Tokens], student_specials: Sequence[Tokens]
) -> Chunks:
    """Align two token lists, special tokens with special tokens and the rest by length.

    Args:
        teacher: The teacher's tokens.
        student: The student's.
        teacher_specials: Token sequences that a chat template writes for the teacher.
        student_specials: The same for the student.
    """
    chunks: Chunks = []
    teacher_length, student_length = {-1: 0}, {-1: 0}
    teacher_seen: list[bytes] = []
    student_seen: list[bytes] = []
    i = j = start_i = start_j = 0
    while i < len(teacher) and j < len(student):
        special_i = _special_at(teacher, i, teacher_specials)
        special_j = _special_at(student, j, student_specials)
        if special_i is not None and special_j is not None:
            teacher_seen.extend(special_i)
            student_seen.extend(special_j)
            i, j = i + len(special_i), j + len(special_j)
            chunks.append((start_i, i, start_j, j))
            start_i, start_j = i, j
            continue
        teacher_length[i] = teacher_length.get(i - 1, 0) + len(teacher[i])
        student_length[j] = student_length.get(j - 1, 0) + len(student[j])
        difference = teacher_length[i] - student_length[j]
        if difference <= 0:
            teacher_seen.append(teacher[i])
            i += 1
        if difference >= 0:
            student_seen.append(student[j])
            j += 1
        if difference == 0:
            chunks.append((start_i, i, start_j, j))
            start_i, start_j = i, j
    return [(a, b, c, d) for a, b, c, d in chunks if b"".join(teacher_seen[a:b]) == b"".join(student_seen[c:d])]


def bare_loop(teacher: Tokens, student: Tokens) -> Chunks:
    """Join tokens on the side that is behind until both sides say the same.

    Args:
        teacher: The teacher's tokens.
        student: The student's; the same bytes in all.
    """
    chunks: Chunks = []
    left = right = b""
    i = j = start_i = start_j = 0
    while i < len(teacher) or j < len(student):
        if len(left) <= len(right) and i < len(teacher):
            left += teacher[i]
            i += 1
        elif j < len(student):
            right += student[j]
            j += 1
        else:
            break
        if left == right:
            chunks.append((start_i, i, start_j, j))
            start_i, start_j = i, j
            left = right = b""
    return chunks


def _special_at(tokens: Tokens, at: int, specials: Sequence[Tokens]) -> Tokens | None:
    for special in specials:
        if tuple(tokens[at : at + len(special)]) == special:
            return special
    return None
