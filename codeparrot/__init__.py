"""The library: what a corpus, a tokenizer, a packed row, a model and a training step are.

Flat, one noun per file, in the order in which data flows; a module imports only modules that stand before it.
Nothing here imports ray or kubernetes, so every piece runs in a plain test or under torchrun.

    errors             the tree of everything a user can do wrong or meet
    settings           the base of all settings, and how a wrong one is reported
    s3                 a bucket of any S3-compatible store: endpoint, credentials, what its refusals mean
    storage            S3 or a directory, by one interface; conditional writes; trying again
    manifest           outputs that are committed at once, and fingerprints that say when to make them again
    lease              of all processes that would write an output, one may
    forgotten          repositories that must not be learned from any more
    code_version       the version of the code that makes an output, read from its imports
    draws              keyed randomness: every random choice is a function of the seed and its purpose
    documents          one source file; how bytes become one
    licenses           SPDX expressions from metadata, and allow-lists
    sources/           where documents come from: packages, directory, git, archive, github, sdist,
                       huggingface, bigquery
    secret_formats     secrets that can be told by their form, and private keys
    addresses          e-mail and public IP addresses, told from what looks like them
    redact             secrets and addresses replaced by placeholders
    lines              the lines of a text, counted and measured fast
    generated          files that no person wrote, or that are others'
    filters            what a model should not learn from, and why
    shingles           runs of words, hashed in bulk
    decontaminate      what benchmarks ask is not learned by heart
    dedup              of documents that say the same, one stays
    near_dedup         of documents that say nearly the same, one stays
    splits             train and validation, by repository
    characters         those that the two back ends of the tokenizer take for different kinds
    words              how often each word of a corpus occurs
    merges             what a byte-level BPE learns, by the fast back end or from counts of words
    tokenizer          byte-level BPE, trained and applied in bulk
    objectives         what is asked of rows: the next token, masked tokens, spans; and what is to be filled
    best_fit           numbers of rows filled with numbers of pieces, by best-fit decreasing
    packing            documents to rows, with a ledger that balances
    infilling          documents told as beginning, end, middle
    provenance         where every row comes from, and which rows held which repository
    attention          within a window, in sparse blocks, or linear in the length; exported beside weights
    model              GPT-2 or NanoChat from a local configuration, and its files for the hub
    loss               the training loss, a few tokens at a time
    muon               matrices moved along all their directions alike
    optimizer          AdamW, or Muon with it, and their learning rates
    precision          fp32, or bf16 where the device computes in it
    throughput         how much of a machine training uses
    data_order         which row is trained on when, as a pure function of the position
    boundaries         where documents begin in rows: positions, and what may see each other
    dataloader         packed rows by number, through a bounded cache, fetched ahead
    checkpoint         a step's whole state, committed at once and verified
    checkpoint_writer  checkpoints in the background
    metrics            loss, perplexity, bits per byte, and plain yardsticks
    parallel           ranks that train together (DDP, FSDP2), and how they agree
    stopwatch          where the time of a training run goes
    train_state        the state of a training run, to the host and back
    run_record         metrics of a run, as JSON lines and for TensorBoard
    training_job       what a training run is: settings, inputs, who watches, where it is
    sizing             what a training run will take: arithmetic, memory, time and money
    train              the loop
    exported           a model and its tokenizer, from files as the hub has them
    vocabulary         a model's own tokens: prompts to ids, and ids to text as they come
    stops              texts at which a completion ends
    sampling           the next token, by draws that depend on nothing but their key
    slots              keys and values of a batch whose rows come and go
    completion         what is asked of a model, and what comes of it
    engine             many completions at once
    generate           completions of the recipe's prompts
    fill               what models that are no decoders put into the holes of a prompt
    libc               system calls that Python has no function for
    seccomp            which system calls a program of a model may make
    landlock           which files a program of a model may open
    namespaces         namespaces for programs of a model, where they can be had
    program_server     forks a confined child for every program, and says what became of it
    sandbox            programs that nobody has read, run so that they harm nothing
    bootstrap          how far a figure would move with other repositories or problems
    scaling            how the loss falls with parameters and tokens, and where that ends
    pass_at_k          of k completions, the chance that one is right
    humaneval          problems, completions of them, and how many are right
    score              no stage: completions from a file, scored without Ray or a store
    humaneval_samples  samples of every problem, by the engine
    breakdown          what predictions cost, by where the text comes from
    copies             what of a text stands word for word in the training rows
    tasks              lines and bodies of functions that a model is asked to write
    evaluate           how well a model predicts rows and whole texts
    plots              the drawings of the report
    log_plots          drawings over many sizes, with intervals
    pages              what pages and cards share, and how text of strangers is shown
    data_card          what is in a corpus, where it comes from, what was removed by what
    report             the page a person looks at
    wording            what texts show of the corpus that a model has learned from
    compare            several models on the same prompts and text, on one page
    study_page         what many runs say together, on one page
    runs               the runs of a store: what there is, whether it is intact, deleting it
    sightings          which runs were trained on rows of a repository
    hub                a checkpoint as the hub has models, with its model card
    pretrained         a model and its tokenizer, from a run, a checkpoint, a folder or the hub
    serving_metrics    what Prometheus can ask of a server
    completions_api    OpenAI's completions: what a request may say, what answers and errors look like
    served_choice      what the engine says becomes text, tokens, and their places in the text
    completion_plan    what a request asks of the engine, and the limits of a server
    engine_thread      the thread that an engine belongs to
    exchange           one request and its answer, as it comes
    serving            which requests are accepted, and for how many there is room
    api_keys           who may ask: keys from a file
    config             the recipe: all settings of a run in one file
    study              many runs of one recipe, each with other settings
    launch             from a recipe to a training job, and training it without Ray
    ports              free ports of loopback
    weed               SeaweedFS as a program, and its keys
    local_store        the embedded S3 server, and its life
"""

__version__ = "0.1.0"
