"""The transcript commitment of the schemes whose payload is the whole trace."""

from __future__ import annotations

from daifi_flows.encoding import tagged_hash

__all__ = ["transcript_of"]


def transcript_of(scheme: str, task_id: bytes, output_cid: str, payload: bytes) -> bytes:
    """32 bytes that bind a payload to its scheme, task and output.

    ``keccak256("daifi/transcript/1" ‖ dag-cbor(fields))``: a payload lifted from another proof has
    another transcript, whatever the scheme makes of its bytes.
    """
    return tagged_hash(
        "daifi/transcript/1",
        {"scheme": scheme, "task_id": task_id, "output_cid": output_cid, "payload": payload},
    )
