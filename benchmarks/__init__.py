"""What is measured against peers: `make bench`, or `make bench ONLY=id` for one.

Every `bench_ID.py` holds one `BENCHMARK`; what it printed last lies in `results/ID.txt`. Nothing imports this package.

    harness                    pairs of samples taken in turns, their ratio and how certain it is
    corpus                     packed rows of real code in an S3 store, made without Ray
    runs                       training runs as commands, and inside this process
    peers                      the original CodeParrot training loop, and other plain ways to do it
    decoding                   a model to measure decoding with
    serving                    a small model behind the real HTTP server
    code                       the Python files of the installed packages
    original_prep              how the original CodeParrot prepared its corpus, written plainly
    near_dedup_worker          near duplicates as a command
    memory_worker              one rank whose memory is measured
    allreduce_worker           one rank whose gradients are summed
    bench_ddp_vs_torchrun      Ray Train against torchrun
    bench_ddp_efficiency       four workers on two cores against one process
    bench_loader_vs_synthetic  rows from the store against rows in memory
    bench_loop_vs_original     our loop against the original one
    bench_data_resume          finding the next batch against skipping all before it
    bench_checkpoint_stall     checkpoints in the background against written at once
    bench_recovery             a killed worker against a cold start
    bench_shm_allreduce        gradients summed in shared memory against gloo
    bench_memory_per_worker    memory against what training needs on paper
    bench_bpe_training         learning a tokenizer's merges
    bench_encode               text to token ids
    bench_exact_dedup          exact duplicates against a query of DuckDB
    bench_near_dedup           near duplicates against datasketch
    bench_near_dedup_quality   near duplicates against text-dedup, as commands
    bench_prep                 raw files to packed rows against the original's algorithm
    bench_prep_memory          the same for ten times the input: memory
    bench_packing              token ids to rows against trl
    bench_generate_batched     completions of many prompts against one by one, and padded
    bench_humaneval_generation samples of problems against one batch per problem
    bench_ray_pack_overhead    the pack stage in Ray against its bare back end
    bench_serve_load           many clients at once against one request at a time
    bench_tokens_to_loss       NanoChat with Muon against GPT-2 with AdamW: tokens until the same loss
    bench_attention_growth     time and memory of attention against the length, and loss at equal tokens
"""

import sys
from pathlib import Path

sys.path.append(str(Path(sys.prefix) / "peers"))
"""Where `make bench` installs what is compared with, and nothing else finds it."""
