"""The report as a PDF, by WeasyPrint: an extra of its own, which needs Pango of the system. Nothing is loaded from anywhere."""

from __future__ import annotations

from landbridge.errors import ConfigError


def made(page: str) -> bytes:
    """The PDF of a page that stands alone. ConfigError if the extra or its libraries are not installed."""
    try:
        from weasyprint import HTML  # noqa: PLC0415 - an extra
        from weasyprint.urls import URLFetcher  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"a PDF needs the extra landbridge[pdf] ({error}): install weasyprint, or print the report from a browser"
        ) from error
    except OSError as error:
        raise ConfigError(
            "a PDF needs libpango-1.0-0, libpangoft2-1.0-0 and libharfbuzz-subset0 of the system "
            f"({str(error).splitlines()[0]}): apt-get install them, or print the report from a browser"
        ) from error
    pdf: bytes = HTML(string=page, url_fetcher=URLFetcher(allowed_protocols=())).write_pdf()
    return pdf
