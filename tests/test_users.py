"Users, sessions and tokens on both databases, also when many come at once."

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from classification_mlops.db.schema import SignInFailure, User, UserSession
from classification_mlops.db.session import reading, writing
from classification_mlops.db.signin import (
    FOR_ALL_NAMES,
    FOR_ONE_NAME,
    TooManyAttempts,
    find_visitor,
    make_token,
    revoke_token,
    sign_in,
)
from classification_mlops.db.users import add_user, disable_user, set_password
from classification_mlops.text import UsageError, UserError

PASSWORD, SECRET = "tea kettle orbit", b"a secret of thirty-two characters"


def together(act, count: int) -> list:
    "What came of doing the same so often at once: answers, or errors."

    def tried(number):
        try:
            return act(number)
        except UserError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(tried, range(count)))


def test_one_name_is_given_once(engine):
    def register(number):
        with writing(engine) as session:
            return add_user(session, "ann", f"{PASSWORD} {number}").username

    found = together(register, 30)
    assert found.count("ann") == 1 and sum(isinstance(one, UsageError) for one in found) == 29
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(User)) == 1


def test_guesses_at_once_are_no_better_than_guesses_one_by_one(engine):
    with writing(engine) as session:
        add_user(session, "ann", PASSWORD)
    found = together(lambda number: sign_in(engine, SECRET, "ann", f"guess {number}", "10.0.0.1"), 40)
    looked_at = [one for one in found if not isinstance(one, TooManyAttempts)]
    assert len(looked_at) <= FOR_ONE_NAME and all(isinstance(one, UserError) for one in found)
    spray = together(lambda number: sign_in(engine, SECRET, f"name {number}", "a guess", "10.0.0.2"), 60)
    assert len([one for one in spray if not isinstance(one, TooManyAttempts)]) <= FOR_ALL_NAMES
    assert sign_in(engine, SECRET, "ann", PASSWORD, "10.0.0.3"), "the owner comes in from elsewhere"
    with reading(engine) as session:
        kept = session.scalar(select(func.count()).select_from(SignInFailure))
    assert kept <= FOR_ONE_NAME + FOR_ALL_NAMES


@pytest.mark.parametrize(
    "act", [disable_user, lambda session, name: set_password(session, name, f"new {PASSWORD}")]
)
def test_sessions_end_with_what_they_rest_on(engine, act):
    with writing(engine) as session:
        add_user(session, "bob", PASSWORD)
        token = make_token(session, "bob", "camera", SECRET)
    keys = [sign_in(engine, SECRET, "bob", PASSWORD, "10.0.0.1") for _ in range(2)]
    assert all(find_visitor(engine, SECRET, key, False) for key in keys)
    assert find_visitor(engine, SECRET, token, True) and not find_visitor(engine, SECRET, token, False)
    with writing(engine) as session:
        act(session, "bob")
    assert not any(find_visitor(engine, SECRET, key, False) for key in keys)
    with reading(engine) as session:
        assert not session.scalars(select(UserSession).where(UserSession.revoked_at.is_(None))).all()
    with writing(engine) as session:
        revoke_token(session, "bob", "camera")
    assert find_visitor(engine, SECRET, token, True) is None
