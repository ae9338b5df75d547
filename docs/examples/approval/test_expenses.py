from expenses import Approved, Expense, approve, ask, book, decided, escalate, remind

from flowdsl import Success
from flowdsl.testing import interleavings

DONE = Success(None)
KIM = Approved(by="kim")


def test_a_decision_is_heard_whenever_it_comes():
    writing = {ask: DONE, remind: DONE, escalate: DONE, book: DONE}
    expense = Expense("train to Graz", "kim", 12_900)
    for run in interleavings(approve, expense, given=writing, signals=[(decided, KIM)], depth=8):
        assert run.exit == Success(KIM)
