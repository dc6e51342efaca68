"""Grafana's dashboard and Prometheus' alert rules, generated from the declared metrics by
``python -m penstock.dashboards FOLDER``.
"""
