from __future__ import annotations

import pytest
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from crane_x7_bringup.camera_health import silent, topics
from crane_x7_bringup.session import Session
from crane_x7_vla.nodes.domain import take_domain
from crane_x7_vla.nodes.messages import publisher_qos

PRIMARY, WRIST = "camera/color/image_raw", "camera_wrist/color/image_raw"


def test_a_camera_counts_when_it_is_set() -> None:
    assert topics({"PRIMARY_CAMERA_SERIAL": "0123", "WRIST_CAMERA_DEVICE": "/dev/video2"}) == [PRIMARY, WRIST]
    assert topics({"PRIMARY_CAMERA_SERIAL": "", "WRIST_CAMERA_SERIAL": "0123"}) == [WRIST]


@pytest.mark.ros
def test_a_camera_that_sends_nothing_is_named() -> None:
    publishers: list[Publisher] = []

    def publish() -> None:
        for publisher in publishers:
            publisher.publish(Image())

    with take_domain() as domain, Session(domain.number, watch=publish) as session:
        publishers.append(session.node.create_publisher(Image, PRIMARY, publisher_qos()))
        assert silent(session, [PRIMARY], timeout=60.0) == []
        assert silent(session, [PRIMARY, WRIST], timeout=3.0) == [WRIST]
        publishers.append(session.node.create_publisher(Image, WRIST, publisher_qos()))
        assert silent(session, [PRIMARY, WRIST], timeout=60.0) == []
