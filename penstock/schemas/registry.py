"""Where schemas and their ids come from: the committed lock, or a Confluent-compatible registry by URL.

An id that cannot be looked up *now* is a transient fault and stops the partition until it can; only an id that the registry says
does not exist makes a row bad. The two are different exceptions, so that nothing can confuse them.
"""


class TransientLookupError(Exception):
    """The registry could not be asked. Try again: the rows are not to blame."""


class UnknownSchemaId(LookupError):
    """The registry answered that there is no such id."""
