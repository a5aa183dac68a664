"""What to ask an engine: the samples of a build as the teacher's tokenizer cuts them."""

import json
from pathlib import Path

from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.disk import whole_file


def write_prompts(run: BuildRun, path: Path, top_k: int) -> int:
    """Write a request for each sample, as the batch files of OpenAI's interface have them.

    Args:
        run: The run file, with `teacher.topk`.
        path: JSON lines to write.
        top_k: Ids to ask for at each position.

    Returns:
        The number of requests.

    Raises:
        WriteError: The file cannot be written.
        TideCacheError: See `prepare_build`.
    """
    build = prepare_build(run, weights="unread", reads_topk=False)
    assert build.paired is not None, "all rows are paired"
    count = 0
    with whole_file(path) as part, part.open("w", encoding="utf-8") as stream:
        for shard in range(build.plan.num_shards):
            for pair in build.paired.shard(shard).pairs:
                body = {
                    "model": run.teacher.model,
                    "prompt": pair.teacher_ids_M.tolist(),
                    "max_tokens": 1,
                    "temperature": 1.0,
                    "prompt_logprobs": top_k,
                    "return_token_ids": True,
                }
                request = {"custom_id": str(pair.sample_id), "method": "POST", "url": "/v1/completions", "body": body}
                stream.write(json.dumps(request) + "\n")
                count += 1
    return count
