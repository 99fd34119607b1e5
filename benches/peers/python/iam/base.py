"""Django's PostgreSQL backend with a token for each connection, as django-iam-dbauth has it."""

from django.db.backends.postgresql import base

from token_of import token


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self):
        return super().get_connection_params() | {"password": token()}
