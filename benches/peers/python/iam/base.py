"""Django's PostgreSQL backend with a new token for each connection, as in django-iam-dbauth."""

from django.db.backends.postgresql import base

from token_of import token


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self):
        return super().get_connection_params() | {"password": token()}
