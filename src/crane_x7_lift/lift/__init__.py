from lift.make import make_env

__all__ = ["make_env"]
