"""The clients that are written in Python. They print the same lines as ours.rs."""

import logging
import os
import sys
import threading
import time

import psycopg
import psycopg_pool
import sqlalchemy
from aws_advanced_python_wrapper import AwsWrapperConnection
from aws_advanced_python_wrapper.errors import FailoverSuccessError

INSERT = "INSERT INTO written DEFAULT VALUES"
THINKING = 0.01
TIMEOUT = 30
CONNINFO = os.environ["CONNINFO"]


class Aws:
    """AWS' wrapper has no pool, so it is in the QueuePool that AWS' documents show."""

    def __init__(self, connections, plugins):
        settings = {"wrapper_dialect": "aurora-pg", "plugins": plugins, "autocommit": True}
        connect = lambda: AwsWrapperConnection.connect(psycopg.Connection.connect, CONNINFO, **settings)
        self.pool = sqlalchemy.QueuePool(connect, pool_size=connections, max_overflow=0, timeout=TIMEOUT)

    def insert(self):
        connection = self.pool.connect()
        try:
            connection.cursor().execute(INSERT)
        except FailoverSuccessError:
            # The wrapper has connected to the new writer.
            raise
        except Exception:
            connection.invalidate()
            raise
        finally:
            connection.close()


class Libpq:
    def __init__(self, connections):
        size = {"min_size": connections, "max_size": connections, "timeout": TIMEOUT}
        self.pool = psycopg_pool.ConnectionPool(CONNINFO, kwargs={"autocommit": True}, open=True, **size)

    def insert(self):
        with self.pool.connection() as connection:
            connection.execute(INSERT)


CLIENTS = {
    "aws": lambda connections: Aws(connections, "failover_v2,iam"),
    "aws-default": lambda connections: Aws(
        connections, "initial_connection,aurora_connection_tracker,failover_v2,host_monitoring_v2,iam"
    ),
    "libpq-list": Libpq,
    "libpq-cluster": Libpq,
}


def work(client, thread):
    while True:
        started, failure = time.monotonic(), ""
        try:
            client.insert()
        except Exception as error:
            failure = " " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
        # One write for each line, so that the lines of threads are not mixed.
        os.write(1, f"{thread} {started:.6f} {time.monotonic():.6f}{failure}\n".encode())
        time.sleep(THINKING)


def main():
    # The lines of the threads contain the errors.
    logging.disable()
    name, threads, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    client = CLIENTS[name](connections)
    for thread in range(threads):
        threading.Thread(target=work, args=(client, thread), daemon=True).start()
    # Until the bench ends.
    sys.stdin.read()
    os._exit(0)


main()
