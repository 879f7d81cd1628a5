"""Commands of the library: what `python -m jaxcore` (installed: `jaxcore`) does, one module per command.

    embed       texts of a file to vectors
    attribute   which words decided: explanations of a classifier or of a similarity
    generate    prompts to continuations: a decoder, by any decoding strategy
    text_runs   what these share: opening texts, ticks, progress; vector_file and line_file: outputs that resume
    arguments   a command line from a dataclass
    console     starting and ending: memory settings, exit codes

A command is `main(arguments) -> exit code`. Everything it does is a function of the rooms above.
"""
