"""Clients that insert rows without pause, and know of each row whether its commit was acknowledged."""

import itertools
import os
import threading
import time

import psycopg

from cluster import NAMES, PASSWORD, address_of

CLIENTS = 4
PAUSE_SECONDS = 0.01


class Load:
    """Inserts until it is left. A row that was tried once is never tried again: its number tells what became of it."""

    # Over all loads of a run.
    numbers = itertools.count()

    def __init__(self, names=NAMES):
        """Clients of whichever of these nodes can be written to."""
        self.hosts = ",".join(map(address_of, names))
        self.acknowledged = []
        self.unknown = 0
        self.longest_pause = 0.0
        self.last = time.monotonic()
        self.lock = threading.Lock()
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.client, daemon=True) for _ in range(CLIENTS)]

    @staticmethod
    def prepare(node):
        node.sql("create table orders (number int primary key, at timestamptz default clock_timestamp(), note text)")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def client(self):
        while not self.is_over.is_set():
            try:
                with psycopg.connect(
                    host=self.hosts, user="postgres", password=PASSWORD, dbname="postgres",
                    target_session_attrs="read-write", connect_timeout=3, autocommit=True, tcp_user_timeout=5000,
                ) as connection:
                    warnings = []
                    connection.add_notice_handler(warnings.append)
                    while not self.is_over.is_set():
                        self.insert(connection, warnings)
                        time.sleep(PAUSE_SECONDS)
            except psycopg.Error:
                time.sleep(0.2)

    def insert(self, connection, warnings):
        number = next(self.numbers)
        try:
            inserted = connection.execute(
                "insert into orders (number, note) values (%s, %s) returning at", (number, os.urandom(1500).hex())
            )
        except psycopg.Error:
            self.count_unknown()
            raise
        # A commit whose wait for the synchronous standby was cancelled comes with a warning, and need not be kept.
        if warnings:
            self.count_unknown()
            raise psycopg.OperationalError(warnings[0].message_primary)
        at = inserted.fetchone()[0]
        with self.lock:
            now = time.monotonic()
            self.longest_pause = max(self.longest_pause, now - self.last)
            self.last = now
            self.acknowledged.append((number, at))

    def count_unknown(self):
        with self.lock:
            self.unknown += 1

    def lost(self, node):
        """Rows that were acknowledged and are not there."""
        with node.connect() as connection:
            there = {row[0] for row in connection.execute("select number from orders")}
        with self.lock:
            return [number for number, _ in self.acknowledged if number not in there]
