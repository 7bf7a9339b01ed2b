"""Where this machine is: by its firmware, or by the names that are given."""

from __future__ import annotations

import pytest

from outlast._errors import ConfigError
from outlast.drill.metadata import TOKEN, metadata_service
from outlast.notice.detect import AZURE_TAG, metadata_sources, parse_names, place


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"}, "aws"),
        ({"sys_vendor": "Xen", "bios_vendor": "Amazon EC2"}, "aws"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gcp"),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG}, "azure"),
        ({"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"}, "alibaba"),
        ({"sys_vendor": "Tencent Cloud", "product_name": "CVM"}, "tencent"),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, None),
        ({"sys_vendor": "LENOVO"}, None),
        ({"sys_vendor": "Xen"}, None),
        ({}, None),
    ],
)
def test_the_firmware_says_which_cloud(tmp_path, files, found):
    """As cloud-init tells them apart; a machine at home is none of them."""
    for name, value in files.items():
        (tmp_path / name).write_text(value + "\n")
    assert place(tmp_path) == found


def test_a_machine_that_is_none_of_them_asks_nobody(tmp_path):
    """No source, no thread, no request."""
    with metadata_service() as service:
        assert metadata_sources({"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}, tmp_path) == []
        assert metadata_sources({"OUTLAST_NOTICE": "signals,slurm"}, tmp_path) == []
        assert service.asked == []


def test_a_name_goes_before_what_the_firmware_says(tmp_path):
    """`--notice aws` asks AWS on any machine; `signals` asks nobody on EC2."""
    (tmp_path / "sys_vendor").write_text("Amazon EC2")
    assert metadata_sources({"OUTLAST_NOTICE": "signals"}, tmp_path) == []
    with metadata_service() as service:
        env = {"OUTLAST_NOTICE": "aws, slurm", "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}
        (source,) = metadata_sources(env, tmp_path / "none")
        source.close()
        assert service.times_asked(TOKEN) <= 1
        assert (
            len(metadata_gcp := metadata_sources({"OUTLAST_NOTICE": "gcp", "GCE_METADATA_HOST": service.url}))
            == 2
        )
        for source in metadata_gcp:
            source.close()


def test_an_unknown_name_lists_those_that_are_known():
    """A typing error is not a machine without notices."""
    with pytest.raises(ConfigError, match=r"'awz'.*aws.*slurm"):
        parse_names("gcp,awz")
    assert parse_names(" aws,,gcp ") == ("aws", "gcp")
