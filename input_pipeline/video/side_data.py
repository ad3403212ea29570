"""What FFmpeg hangs on a decoded frame besides its picture: motion vectors, how it is turned."""

import av
from av.sidedata.sidedata import SideData, SideDataContainer


def frame_side_data(frame: av.VideoFrame, name: str) -> SideData | None:
    """Return one kind of a frame's side data.

    Not by `frame.side_data`: the frame keeps what that gives, which keeps the frame, so that its
    picture stays in memory until Python's garbage collector comes by. Pictures of a hundred frames
    pile up, and each new one is written to fresh memory, which takes longer than reading its
    vectors.

    Args:
      frame: From the decoder.
      name: FFmpeg's name, for example 'MOTION_VECTORS'.

    Returns:
      A buffer in the frame's memory, which it keeps; None if the frame has none of this kind.
    """
    return SideDataContainer(frame).get(name)  # type: ignore[call-arg]
