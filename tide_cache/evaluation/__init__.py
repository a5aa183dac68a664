"""How good a student is: held-out NLL, agreement with the teacher, block sampling."""
