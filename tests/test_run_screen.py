"Trainings that are begun, watched and stopped in a real browser."

import pytest
from browser import add_people, chromium, free_port, opened, served, signed_in, web_process
from sqlalchemy import func, select

from classification_mlops.db.schema import Job
from classification_mlops.db.session import open_engine, reading
from classification_mlops.demo import sample_workspace
from classification_mlops.training.queue import cancel_job

PAGE, LONG_S, EPOCHS = "/theme/1/training/run/", 120_000, "300"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = sample_workspace(tmp_path_factory.mktemp("workspace"))
    add_people(found, ann="admin", bob="annotator", vic="viewer")
    return found


def run_page(browser, url, name="bob", language="en"):
    page = opened(signed_in(browser, url, name, language), url + PAGE)
    page.wait_for_selector(".run[data-ready]")
    return page


def job_of(workspace, number: int) -> Job:
    engine = open_engine(workspace.database_url)
    with reading(engine) as session:
        job = session.get(Job, number)
    engine.dispose()
    return job


@pytest.mark.slow
def test_a_training_is_begun_watched_paused_and_finished(browser, workspace):
    port = free_port()
    with served(workspace, port=port) as url:
        page = run_page(browser, url)
        assert "Nothing has been trained yet" in page.inner_text(".jobs")
        page.fill("[name=epochs]", EPOCHS)
        page.click("[data-act=begin]")
        page.wait_for_selector('.run[data-watching="1"]', timeout=LONG_S)
        page.wait_for_selector('.charts[data-epochs]:not([data-epochs="0"])', timeout=LONG_S)
        page.click("[data-act=pause]")
        page.wait_for_selector('.job[data-job="1"] [data-status=paused]', timeout=LONG_S)
        known = int(page.get_attribute(".charts", "data-epochs"))
        assert job_of(workspace, 1).status == "paused" and 1 <= known < int(EPOCHS)
        page.click("[data-act=resume]")
        page.wait_for_selector('.job[data-job="1"] [data-status=running]', timeout=LONG_S)
        known = int(page.get_attribute(".charts", "data-epochs"))
    page.wait_for_selector("html[data-connection=lost]")
    with served(workspace, port=port) as url:  # The training goes on while nobody can look
        page.wait_for_selector("html[data-connection=live]")
        page.wait_for_selector(f'.charts[data-epochs]:not([data-epochs="{known}"])', timeout=LONG_S)
        page.context.close()
        page = run_page(browser, url)
        assert page.get_attribute(".run", "data-watching") == "1"
        page.fill("[name=epochs]", "7")
        page.wait_for_selector('.job[data-job="1"] [data-status=finished]', timeout=LONG_S)
        assert known <= int(page.get_attribute(".charts", "data-epochs")) <= int(EPOCHS)
        page.click("summary")
        page.wait_for_selector('.log:has-text("FINISHED")')
        assert page.input_value("[name=epochs]") == "7", "what is typed stays when a training ends"
        page.click('a:has-text("See the result")')
        page.wait_for_url(f"**/training/result/{job_of(workspace, 1).mlflow_run_id}/")
        assert page.problems == []
        page.context.close()


@pytest.mark.slow
def test_what_goes_wrong_is_said(browser, workspace):
    with served(workspace) as url:
        page = run_page(browser, url)
        page.fill("[name=architecture]", "resnet81")
        page.click("[data-act=begin]")
        page.wait_for_selector(".run > .error:not([hidden]), .chosen .error", timeout=LONG_S)
        said = page.inner_text(".run")
        assert "resnet81" in said and "Traceback" not in said
        page.fill("[name=architecture]", "")
        page.click("[data-act=queue]")
        page.wait_for_selector(".job [data-status=queued]", timeout=LONG_S)
        page.click("[data-act=cancel]")
        page.wait_for_selector(".job [data-status=cancelled]", timeout=LONG_S)
        page.context.close()
        page = run_page(browser, url, "vic", "ja-JP")
        assert not page.is_enabled("[data-act=begin]")
        assert "今すぐ開始" in page.inner_text(".run") and "Start" not in page.inner_text(".run")
        page.context.close()


@pytest.mark.slow
def test_a_training_whose_answer_was_lost_does_not_begin_twice(browser, workspace):
    port, engine = free_port(), open_engine(workspace.database_url)

    def newest() -> int:
        with reading(engine) as session:
            return session.scalar(select(func.coalesce(func.max(Job.id), 0)))

    before = newest()
    with web_process(workspace, port=port) as (server, url):
        page = run_page(browser, url)
        page.click("[data-act=queue]")
        while newest() == before:  # The job is there, and nobody has been told
            assert server.poll() is None
        server.kill()
    page.wait_for_selector("html[data-connection=lost]")
    with served(workspace, port=port):
        page.wait_for_selector(f'.run[data-watching="{before + 1}"]', timeout=LONG_S)
        assert newest() == before + 1
        assert page.is_hidden(".run > .error")
        page.context.close()
    cancel_job(workspace, engine, before + 1)
    engine.dispose()
