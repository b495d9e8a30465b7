"""Slotline for Celery: limits, result caching and leased executors as options of a task."""

from celery_ext.slot import TaskSlot
from celery_ext.step import setup
from celery_ext.task import Task

__all__ = ["Task", "TaskSlot", "setup"]
