// Grafana's types of a dashboard, for an object as JSON has it, and closer than Grafana's own where those take anything.
import type * as dashboard from "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen.js";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen.js";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.js";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.js";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js";

type IsOpen<T> = 0 extends 1 & T ? true : unknown extends T ? true : false;

// TypeScript does not take the text "thresholds" for the enum's member that has this value; JSON has nothing else.
type Plain<T> =
  IsOpen<T> extends true ? T
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends Array<infer Item> ? Plain<Item>[]
  : { [Key in keyof T]: Plain<T[Key]> };

// Grafana fills in what options leave out.
type Some<T> =
  IsOpen<T> extends true ? T
  : T extends string | number | boolean | null | undefined ? T
  : T extends Array<infer Item> ? Some<Item>[]
  : { [Key in keyof T]?: Some<T[Key]> };

// An instant, a range query and an InfluxQL query; Grafana's own type is "anything".
interface Source {
  type: "prometheus" | "influxdb";
  uid: "${datasource}" | "${influxdb_datasource}";
}
interface PromTarget {
  datasource: Source;
  refId: string;
  expr: string;
  format: "time_series" | "table" | "heatmap";
  instant?: boolean;
  range?: boolean;
  legendFormat: string;
}
interface InfluxTarget {
  datasource: Source;
  refId: string;
  query: string;
  rawQuery: true;
  resultFormat: "time_series" | "table";
  alias?: string;
}

type FieldConfig<Custom> = Omit<Plain<dashboard.FieldConfigSource>, "defaults"> & {
  defaults: Omit<Plain<dashboard.FieldConfig>, "custom"> & { custom?: Some<Plain<Custom>> };
};

type Panel<Type, Options, Custom> = Omit<Plain<dashboard.Panel>, "type" | "options" | "fieldConfig" | "targets"> & {
  type: Type;
  options: Some<Plain<Options>>;
  fieldConfig: FieldConfig<Custom>;
  targets: (PromTarget | InfluxTarget)[];
};

type DataPanel =
  | Panel<"bargauge", bargauge.Options, Record<string, never>>
  | Panel<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | Panel<"stat", stat.Options, Record<string, never>>
  | Panel<"table", table.Options, table.FieldConfig>
  | Panel<"timeseries", timeseries.Options, timeseries.FieldConfig>;

type Row = Omit<Plain<dashboard.RowPanel>, "panels"> & { panels: DataPanel[] };

// What Grafana's data sources want of an annotation, and its type does not know.
type Annotation = Omit<Plain<dashboard.AnnotationQuery>, "target"> & {
  expr?: string;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
  useValueForTime?: boolean;
  target?: {
    query: string;
    rawQuery: true;
    textEditor: true;
    fromAnnotations: true;
    titleColumn: string;
    textColumn: string;
    tagsColumn: string;
    refId: string;
  };
};

// The SDK writes this default of an interval into every variable.
type Variable = Plain<dashboard.VariableModel> & { auto?: false; auto_min?: string; auto_count?: number };

export type Dashboard = Omit<Plain<dashboard.Dashboard>, "panels" | "annotations" | "templating"> & {
  panels: (DataPanel | Row)[];
  annotations: { list: Annotation[] };
  templating: { list: Variable[] };
};
