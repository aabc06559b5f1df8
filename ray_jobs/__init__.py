"""The stages: thin, one module each, always run as `python -m ray_jobs.NAME --config FILE`.

The only place that imports ray. In the order of the flow:

    stage             the frame of every stage: command line, skipping, committing, exit codes
    progress          what a person sees while a stage runs
    interrupt         SIGINT and SIGTERM: an orderly end
    status            where a run stands, in a file for who watches from outside
    kept              results of tasks that outlive the driver
    cluster           Ray itself: connecting, room for workers, work spread with Ray Data
    worker_fork       Ray's workers as forks of a process that has imported what they need
    worker_environment  what workers get from us: settings, and the modules with which they begin
    tally             documents and bytes, kept and rejected
    collect           sources -> raw documents
    verdicts          what curation knows of documents, as columns
    near_index        the index with which later corpora are compared
    near_duplicates   near duplicates of a whole corpus, compared side by side
    curate_shard      one shard in the two passes of curation
    data_card         the data card of a curated corpus
    curate            raw -> curated, split documents
    train_tokenizer   curated -> tokenizer
    pack_shard        one shard in the two passes of packing
    pack              curated + tokenizer -> packed rows
    sizes             what --dry-run says of a training
    telemetry         what Prometheus can ask of a run
    train_worker      what every Ray Train worker runs, and how it talks with the driver
    train             packed rows -> a run with checkpoints and an export
    evaluate_rows     what packed rows cost a model, by piece of a document
    evaluate_texts    what whole documents cost a model
    evaluate_tasks    what a model writes when asked, and what of it is copied
    evaluate          a run -> its measures on the validation split
    engines           the model that a task decodes with
    generate          a run -> completions
    humaneval         a run -> completions of problems, and how many are right
    report            all of them -> one page
    pipeline          all stages in order, as one resumable job
    runs              no stage: the runs of a store, listed, verified, exported and deleted
    http_api          the API of a served model over HTTP
    serve             no stage: a model behind OpenAI's API, by Ray Serve
    compare_model     one model, measured as all others are
    compare           no stage: several models on the same prompts and text, on one page
    sweep             no stage: the runs of a study, one after another, and their page
    provenance        no stage: where a packed row comes from
    forget            no stage: packs anew without a repository, and says which runs had seen it
    clean             what `make clean` does: stop what was started, remove what was made
    local             a laptop's `make run`: the embedded store, then the pipeline
"""
