from golden_fixtures import checkpoint, folder, full_checkpoint

__all__ = ["checkpoint", "folder", "full_checkpoint"]
