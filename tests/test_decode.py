"""Decoding a batch against one sequence at a time, with transformers' own generate."""

import torch
from conftest import cut, generate_plainly, prompt_ids

from cotdistill.decode import (
    append_tokens,
    concat_rows,
    decode_greedily,
    line_ids,
    prefill,
    select_rows,
)


def test_greedy_equals_transformers_generate(student, questions):
    rows = [prompt_ids(student, e, "post_cot") for e in questions]
    stop = line_ids(student)
    for ids, row in zip(
        decode_greedily(student, prefill(student, rows), 10, stop)[0], rows, strict=False
    ):
        assert ids == cut(generate_plainly(student, row, 10), stop)


def test_feeding_only_some_rows_leaves_the_others(llama, questions):
    rows = [prompt_ids(llama, e, "post_cot") for e in questions[:3]]
    state = prefill(llama, rows)
    before = state.logits.clone()
    append_tokens(
        llama,
        state,
        torch.tensor([[5, 6]] * 3),
        torch.tensor([[True, True], [False, False], [True, False]]),
    )
    assert torch.equal(state.logits[1], before[1]) and state.lengths.tolist() == [
        len(rows[0]) + 2,
        len(rows[1]),
        len(rows[2]) + 1,
    ]
    with torch.no_grad():
        wanted = [
            llama.model(input_ids=torch.tensor([r])).logits[0, -1]
            for r in (rows[0] + [5, 6], rows[1], rows[2] + [5])
        ]
    torch.testing.assert_close(state.logits, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_selected_and_joined_sequences_go_on_as_before(student, questions):
    rows = [prompt_ids(student, e, "post_cot") for e in questions[:5]]
    state, token = prefill(student, rows), torch.full((5, 1), 7)
    parts = [select_rows(state, [3, 0]), select_rows(state, [4, 1, 2])]
    append_tokens(student, parts[0], token[:2], torch.ones(2, 1, dtype=torch.bool))
    joined = concat_rows(parts, [1, 3, 4, 0, 2])
    append_tokens(student, joined, token, torch.ones(5, 1, dtype=torch.bool))
    with torch.no_grad():
        wanted = [
            student.model(input_ids=torch.tensor([row + [7] * (2 if i in (0, 3) else 1)])).logits[
                0, -1
            ]
            for i, row in enumerate(rows)
        ]
    torch.testing.assert_close(joined.logits, torch.stack(wanted).float(), rtol=1e-4, atol=1e-4)
