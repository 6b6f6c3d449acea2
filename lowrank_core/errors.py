"""What can go wrong, said once: where, what must hold, what came, what to do."""


class LowRankError(Exception):
    """A refusal that a person can act on; its text is shown as it is, without a traceback."""


class InvalidModel(LowRankError):
    """The model, its file or its weights cannot be used."""


class InvalidData(LowRankError):
    """The evaluation or training data cannot be used."""


class InvalidPlan(LowRankError):
    """A rank plan does not fit its model, or is not a plan at all."""


class InvalidFile(LowRankError):
    """A file that exists cannot be read, or must not be."""


class OtherAnswers(InvalidFile):
    """A file was written that does not answer as its network, so it was not saved."""


class InvalidSearch(LowRankError):
    """What is asked of a search cannot be answered."""


class InvalidSettings(LowRankError):
    """A setting is out of its bounds, or does not fit the others."""


class TrainingFailed(LowRankError):
    """Training broke off; the network and its plan are as they were."""


class Cancelled(LowRankError):
    """The work was cancelled before it was done; nothing was changed."""


class UnknownModel(LowRankError):
    """Nothing goes by that name or path."""


class WorkersLost(LowRankError):
    """The processes that work was spread over died, or nobody answers where they should be."""


class MissingExtra(LowRankError):
    """A package that only some files and commands need is not installed."""
