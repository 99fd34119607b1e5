"""The sides that are written in Python, with the same measurements as in src/measures.rs."""

import statistics
import sys
import threading
import time

import django
import sqlalchemy
from django.conf import settings
from django.db import close_old_connections, connection

import token_of

SAMPLES = 200
LOGINS = 20
THREADS = 8
NUMBER = "SELECT 1::float8"
WORK = "SELECT 1::float8 FROM pg_sleep(0.001)"
AGE = """SELECT extract(epoch FROM now() - backend_start)::float8
    FROM pg_stat_get_activity(pg_backend_pid()), pg_sleep(0.1)"""
LIFETIME = 3
LOAD = 35
LATER = 16 * 60


class Django:
    """A connection per thread. A unit of work is a request, which Django begins and ends with close_old_connections."""

    def __init__(self, connections, max_lifetime, health_checks):
        database = {"ENGINE": "iam", "NAME": "app", "CONN_MAX_AGE": max_lifetime, "CONN_HEALTH_CHECKS": health_checks}
        settings.configure(DATABASES={"default": database})
        django.setup()

    def query(self, sql):
        close_old_connections()
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchone()[0]
        finally:
            close_old_connections()

    def checkout(self):
        close_old_connections()
        # cursor() does the same before it makes a cursor.
        connection.close_if_health_check_failed()
        connection.ensure_connection()
        close_old_connections()

    def login(self):
        connection.connect()
        return connection


class SqlAlchemy:
    """A QueuePool that pings a connection at each checkout. The event do_connect signs a token for each connection."""

    def __init__(self, connections, max_lifetime):
        pool = {"pool_size": connections, "max_overflow": 0, "pool_pre_ping": True, "pool_recycle": max_lifetime}
        self.engine = self.with_tokens(sqlalchemy.create_engine("postgresql+psycopg://", **pool))
        unpooled = sqlalchemy.create_engine("postgresql+psycopg://", poolclass=sqlalchemy.pool.NullPool)
        self.unpooled = self.with_tokens(unpooled)

    def with_tokens(self, engine):
        @sqlalchemy.event.listens_for(engine, "do_connect")
        def sign(dialect, record, arguments, parameters):
            parameters["password"] = token_of.token()

        return engine

    def query(self, sql):
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def checkout(self):
        self.engine.connect().close()

    def login(self):
        return self.unpooled.connect()


SIDES = {
    "django": lambda *pool: Django(*pool, health_checks=False),
    "django-health-checks": lambda *pool: Django(*pool, health_checks=True),
    "sqlalchemy": SqlAlchemy,
}


def checkout(side):
    samples = []
    for _ in range(SAMPLES):
        side.query(NUMBER)
        started = time.perf_counter()
        side.checkout()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples) * 1e6


def login(side):
    side.login().close()
    of_cpu, of_wall = [], []
    for _ in range(LOGINS):
        cpu_before, started = time.process_time(), time.perf_counter()
        new = side.login()
        of_cpu.append((time.process_time() - cpu_before) * 1e3)
        of_wall.append((time.perf_counter() - started) * 1e3)
        new.close()
    return f"{statistics.median(of_cpu)} {statistics.median(of_wall)}"


def restart(side):
    ready, end_of_restart = threading.Barrier(THREADS + 1), []

    def thread():
        side.query(WORK)
        ready.wait()
        failed = 0
        while True:
            try:
                side.query(WORK)
                if end_of_restart:
                    return failed, time.perf_counter() - end_of_restart[0]
            except Exception:
                failed += 1

    def await_restart():
        ready.wait()
        wait_for_server()
        end_of_restart.append(time.perf_counter())

    outcomes = in_threads(thread, await_restart)
    return f"{sum(failed for failed, _ in outcomes)} {max(recovery for _, recovery in outcomes)}"


def oldest(side):
    end = time.perf_counter() + LOAD

    def thread():
        greatest = 0.0
        while time.perf_counter() < end:
            greatest = max(greatest, side.query(AGE))
        return greatest

    return max(in_threads(thread))


def refused(side):
    started = time.perf_counter()
    try:
        side.query(NUMBER)
    except Exception as error:
        return after(started, error)
    raise AssertionError("a refusal was expected")


def later(side):
    side.query(NUMBER)
    wait_for_server()
    token_of.advance(LATER)
    started = time.perf_counter()
    while True:
        try:
            side.query(NUMBER)
            return after(started, "works")
        except Exception as error:
            if time.perf_counter() - started > LOAD:
                return after(started, error)


def after(started, text):
    return f"{time.perf_counter() - started:.2f} {' '.join(str(text).split())}"


def in_threads(work, meanwhile=lambda: None):
    results = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()
    return results


def wait_for_server():
    print("ready", flush=True)
    sys.stdin.readline()


def main():
    name, measure = sys.argv[1:]
    side = SIDES[name](1 if measure in ("checkout", "login") else 10, LIFETIME if measure == "oldest" else 14 * 60)
    print({run.__name__: run for run in (checkout, login, restart, oldest, refused, later)}[measure](side))


main()
