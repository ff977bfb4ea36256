"""What is on record in a lab's folder, for its pages and lists: verdicts, and how far unfinished claims are."""

from collections.abc import Callable

from isoflop.config import nearest
from isoflop.errors import UserError
from isoflop.lab.claim import Claim, all_claims
from isoflop.lab.outcome import Outcome
from isoflop.lab.store import Store
from isoflop.lab.study import Study
from isoflop.lab.verdict import decide

FEWEST = 2  # pairs that have an interval


def recorded(claim: Claim, store: Store) -> Outcome | None:
    """The last verdict on a claim that was fixed here, from what is on record alone. Before the first verdict: how far
    it is, with an interval only if the claim's rule allows looking before all pairs are there. None if the speeds of
    its arms were not measured yet.
    """
    fixings = store.fixings(claim)
    if not fixings or (claim.setup.length == "seconds" and claim.trains and store.speeds(claim.hash) is None):
        return None
    study = Study.of(claim, store, store.data_of(claim))
    study.choose()
    fixed = min(float(line.get("time", 0.0)) for line in fixings)
    verdicts, plans = store.notes(claim, "verdict"), store.notes(claim, "plan")
    if verdicts:
        pairs = int(verdicts[-1].get("pairs", 0))
        looks = len([look for look in verdicts if look.get("pairs") != pairs])
        return Outcome(study, decide(claim, study.measured(pairs), looks), pairs, 0.0, fixed, looks, complete=pairs)

    planned = int(plans[-1].get("pairs", 0)) if plans else 0 if study.trained else claim.setup.pairs
    complete = study.complete(planned)
    shown = complete if claim.setup.rule == "anytime" and complete >= FEWEST else 0
    decision = decide(claim, study.measured(shown))
    return Outcome(study, decision, shown, 0.0, fixed, complete=complete, planned=planned, finished=False)


def all_recorded(store: Store, say: Callable[[str], None]) -> list[Outcome]:
    """What is on record of all claims of a folder. A claim that cannot be read any more, since it is of another version
    or names code that is not there, does not hide the others: `say` is told."""
    found = []
    for claim in claims_there(store):
        try:
            one = recorded(claim, store)
        except UserError as error:
            say(f"{claim.name} is left out: {error}")
            continue
        if one is not None:
            found.append(one)
    return found


def claims_there(store: Store) -> list[Claim]:
    """The claims that were fixed in a folder, those of isoflop first and in their order. Where a claim of isoflop is
    the one that was fixed, its words are those of today."""
    ours = {claim.name: claim for one in all_claims() for claim in one.all_sizes()}
    found = {}
    for name in store.names():
        versions = store.versions(name)
        if not versions:
            continue
        last, today = versions[-1], ours.get(name)
        found[name] = today if today is not None and today.hash == last.hash else last
    order = {name: index for index, name in enumerate(ours)}
    return sorted(found.values(), key=lambda claim: (order.get(claim.name, len(order)), claim.name))


def state_of(claim: Claim, store: Store) -> str:
    """The last verdict, or that there is none yet."""
    verdicts = store.notes(claim, "verdict")
    return str(verdicts[-1].get("verdict")) if verdicts else "not finished"


def one_there(name: str, store: Store) -> Claim:
    """Raises:
    UserError: if no claim of this name was fixed in a folder.
    """
    for claim in claims_there(store):
        if claim.name == name:
            return claim
    close = nearest(name, [claim.name for claim in claims_there(store)])
    raise UserError(f"{store.folder} has no verdict on {name!r}{close}; `isoflop lab run {name}` makes one")
