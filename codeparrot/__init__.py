"""The library: what a corpus, a tokenizer, a packed row, a model and a training step are.

Flat, one noun per file, in the order in which data flows; a module imports only modules that stand before it.
Nothing here imports ray or kubernetes, so every piece runs in a plain test.

    errors          the tree of everything a user can do wrong or meet
    settings        the base of all settings, and how a wrong one is reported
    storage         S3 or a directory, by one interface
    manifest        outputs that are committed at once, and fingerprints that say when to make them again
    documents       one source file; how bytes become one
    licenses        SPDX expressions from metadata, and allow-lists
    sources/        where documents come from: packages, directory
    filters         what a model should not learn from, and why
    dedup           of documents that say the same, one stays
    splits          train and validation, by repository
    tokenizer       byte-level BPE, trained and applied in bulk
    packing         documents to rows, with a ledger that balances
    model           GPT-2 from a local configuration
    optimizer       AdamW and its learning rate
    precision       fp32, or bf16 where the device computes in it
    dataloader      which rows a step trains on, as a pure function of the step
    checkpoint      a step's whole state, committed at once and verified
    metrics         loss, perplexity, bits per byte, and plain yardsticks
    evaluate        the loss of rows, token-weighted
    train           the loop
    generate        completions
    plots           the drawings of the report
    report          the page a person looks at
    config          the recipe: all settings of a run in one file
    local_store     the embedded S3 server of a laptop
"""

__version__ = "0.1.0"
